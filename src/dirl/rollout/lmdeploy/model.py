"""A transformers model as LMDeploy wants it: the folder it starts from, and the names of its weights."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase


def weight_shapes(config: PreTrainedConfig) -> dict[str, torch.Size]:
    """Parameter shapes by transformers name, without allocating any."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict()))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def write_model_folder(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: str) -> None:
    """The folder that LMDeploy starts from: config and tokenizer, no weights."""
    values = config.to_dict()
    moe = hasattr(config, "num_experts")
    values["model_type"], values["dtype"] = ("sdar_moe" if moe else "sdar"), dtype
    values["architectures"] = ["SDARMoeForCausalLM" if moe else "SDARForCausalLM"]
    values.setdefault("sliding_window", None)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    tokenizer.save_pretrained(folder)
