"""Model families, one file each, and which of them serves a model."""

from dirl.models.families.base import ModelFamily
from dirl.models.families.code import RemoteCode
from dirl.models.families.dream_reasoner import DreamReasonerFamily
from dirl.models.families.llada2 import LLaDA2Family
from dirl.models.families.llama import BlockLlamaFamily
from dirl.models.families.parts import Parts
from dirl.models.families.plain_decoder import PlainDecoder
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.families.qwen3_moe import Qwen3MoeFamily
from dirl.models.families.registry import (
    check_served,
    families,
    family_of,
    family_of_type,
    register_family,
    register_models,
)

__all__ = [
    "BlockLlamaFamily",
    "DreamReasonerFamily",
    "LLaDA2Family",
    "ModelFamily",
    "Parts",
    "PlainDecoder",
    "Qwen3Family",
    "Qwen3MoeFamily",
    "RemoteCode",
    "check_served",
    "families",
    "family_of",
    "family_of_type",
    "register_family",
    "register_models",
]
