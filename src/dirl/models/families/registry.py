"""The families that are known: this package's own, and those that a user adds."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from dirl.attention import register_attention
from dirl.models.families.base import ModelFamily
from dirl.models.families.dream_reasoner import DreamReasonerFamily
from dirl.models.families.llada2 import LLaDA2Family
from dirl.models.families.llama import BlockLlamaFamily
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.families.qwen3_moe import Qwen3MoeFamily
from dirl.models.families.refused import refuse

OWN = (Qwen3Family, Qwen3MoeFamily, LLaDA2Family, BlockLlamaFamily, DreamReasonerFamily)
_BY_TYPE: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> None:
    """Let it serve its model types from now on, in place of whichever did; harmless when repeated."""
    name = type(family).__name__
    if not getattr(family, "model_types", ()):
        raise ValueError(f"family {name}: model_types is empty; name the model_type of the configs that it serves")
    if family.logit_shift != 0:
        raise ValueError(
            f"family {name}: logit_shift={family.logit_shift}, but only 0 is supported: the logits at a position have "
            "to be of the token at that position"
        )
    register_models()
    family.register()
    _BY_TYPE.update(dict.fromkeys(family.model_types, family))


def register_models() -> None:
    """Make this package's own families known, to transformers too; harmless when repeated."""
    register_attention()
    for family in OWN:
        if family.model_types[0] not in _BY_TYPE:
            _BY_TYPE.update(dict.fromkeys(family.model_types, made := family()))
            made.register()


def families() -> tuple[ModelFamily, ...]:
    """All families that are known, each once."""
    register_models()
    return tuple(dict.fromkeys(_BY_TYPE.values()))


def family_of(config: PreTrainedConfig, name: str = "") -> ModelFamily:
    """The family that serves a config; see `family_of_type`."""
    return family_of_type(config.model_type, name or config.name_or_path or config.model_type)


def family_of_type(kind: str | None, name: str) -> ModelFamily:
    """The family that serves a `model_type`; ValueError, with the model's name, if none does."""
    register_models()
    if kind not in _BY_TYPE:
        raise ValueError(
            f"model {name!r} has model_type={kind!r}; supported are {', '.join(sorted(_BY_TYPE))}: add a family for it "
            "(docs/extending.md), and name it as the model source's family"
        )
    return _BY_TYPE[kind]


def check_served(values: Mapping[str, Any], name: str) -> None:
    """ValueError, with the model's name, unless a family serves a model whose config.json says these values.

    A user's own family may serve what this package's do not.
    """
    register_models()
    kind = values.get("model_type")
    if type(_BY_TYPE.get(str(kind), OWN[0]())) in OWN:
        refuse(values, name)
    family_of_type(kind, name)
