"""The folder that LMDeploy starts from, for a model that it serves."""

import json
from pathlib import Path
from types import SimpleNamespace

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.models.model_files import architecture, exported_type


def check_served(config: PreTrainedConfig) -> None:
    """Raise ValueError unless LMDeploy runs the model as one of blocks; any other it would run causally."""
    from lmdeploy.pytorch.configurations.sdar import SDARModelConfigBuilder

    if not SDARModelConfigBuilder.condition(SimpleNamespace(model_type=exported_type(config))):
        raise ValueError(
            f"LMDeploy knows no block-diffusion model of model_type={config.model_type!r}: use dirl.rollout.TorchEngine"
        )


def write_model_folder(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: str) -> None:
    """Write config and tokenizer into the folder, and no weights."""
    values = config.to_dict()
    values["model_type"], values["dtype"] = exported_type(config), dtype
    values["architectures"] = [architecture(values["model_type"])]
    values.setdefault("sliding_window", None)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    tokenizer.save_pretrained(folder)
