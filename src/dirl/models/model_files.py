"""The files of a model folder beside its weights, as transformers 4.57, transformers 5 and LMDeploy read them."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_imports
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import cached_file

from dirl.models.families import family_of

TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Names of transformers 5 alone -> names that 4.57 has as well."""
GENERATION = "generation_config.json"
_MAY_BE_MISSING = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}


def model_files(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    carried: Mapping[str, bytes] = MappingProxyType({}),
    dtype: torch.dtype | None = None,
) -> dict[str, bytes]:
    """Name -> content; the same in every process, whatever has become of the model in it.

    Args:
        carried: files of the model's source, see `files_to_carry`.
        dtype: of the weights that will lie beside them; None: the config's.
    """
    own_code = {name: content for name, content in carried.items() if name.endswith(".py")}
    values = config_values(config, dtype, keep_auto_map=bool(own_code))
    ours = family_of(config).code(exported_type(config))
    found = {**_tokenizer_files(tokenizer), **(own_code or (ours.files if ours else {}))}
    found["config.json"] = _json(values)
    found[GENERATION] = _json(_generation_values(config, carried.get(GENERATION)))
    return found


def config_values(config: PreTrainedConfig, dtype: torch.dtype | None, keep_auto_map: bool) -> dict[str, Any]:
    """What config.json says: each value under every name that a reader may look for."""
    values = json.loads(config.to_json_string(use_diff=True))
    kind = values["model_type"] = exported_type(config)
    values["architectures"] = [architecture(kind)]
    values["dtype"] = values["torch_dtype"] = dtype_name(dtype or config.dtype or torch.float32)
    for older, name in config.attribute_map.items():
        values[older] = values[name]  # 4.57 reads num_experts alone, and takes 128 without a word where it is missing
    rope = config.rope_parameters
    values["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] != "default":
        values["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    values.setdefault("sliding_window", None)  # LMDeploy asks for it
    if not keep_auto_map:
        values.pop("auto_map", None)
        if (code := family_of(config).code(kind)) is not None:
            values["auto_map"] = dict(code.auto_map)
    return values


def architecture(model_type: str) -> str:
    """The class that transformers has for a model type."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]].__name__


def exported_type(config: PreTrainedConfig) -> str:
    """The model type under which a model of this config is exported."""
    return family_of(config).exported_type(config)


def files_to_carry(path: str, config: PreTrainedConfig) -> dict[str, bytes]:
    """Files that go from the source into every export as they are: the code that its config names, generation config.

    Args:
        path: folder or hub name. The code is not run.
    """
    wanted = [GENERATION]
    if exported_type(config) == config.model_type:
        targets = (getattr(config, "auto_map", None) or {}).values()
        wanted += sorted({f"{target.split('.')[0]}.py" for target in targets if "--" not in target})
    found: dict[str, bytes] = {}
    while wanted:
        name = wanted.pop()
        file = cached_file(path, name, **_MAY_BE_MISSING) if name not in found else None
        if file is not None:
            found[name] = Path(file).read_bytes()
            if name.endswith(".py"):
                wanted += [f"{name}.py" for name in get_relative_imports(file) if name.isidentifier()]
    return found


def dtype_name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = (file for file in Path(folder).rglob("*") if file.is_file())
        found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    values = json.loads(found["tokenizer_config.json"])
    values["tokenizer_class"] = TOKENIZER_CLASSES.get(values["tokenizer_class"], values["tokenizer_class"])
    for name in ("is_local", "local_files_only"):  # how it was loaded
        values.pop(name, None)
    if (extra := values.pop("extra_special_tokens", None)) is not None:
        values["additional_special_tokens"] = extra  # 4.57 stops at a list under the other name
    return {**found, "tokenizer_config.json": _json(values)}


def _generation_values(config: PreTrainedConfig, carried: bytes | None) -> dict[str, Any]:
    """The source's, or one from the config; with all tokens that end a response."""
    if carried is not None:
        values = json.loads(carried)
    else:
        values = json.loads(GenerationConfig.from_model_config(config).to_json_string(use_diff=True))
    ends = values.get("eos_token_id")
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    ends = list(dict.fromkeys([*ends, *(getattr(config, "stop_token_ids", None) or [])]))
    if ends:
        values["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return values


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
