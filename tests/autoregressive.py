"""Folders of small autoregressive models as transformers writes them: no block size, no mask token."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from dirl.models.tokenizer import new_tokenizer

Kind = Literal["qwen3", "llama"]
SHAPE = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    initializer_range=0.35,
)


def causal_folder(
    folder: Path, kind: Kind = "qwen3", alphabet: str | None = "01234+=", free_rows: int = 0, **changes: Any
) -> PreTrainedModel:
    """A model that says different things of different texts.

    Args:
        alphabet: None: bytes.
        free_rows: that the vocabulary is padded with.
    """
    tokenizer = new_tokenizer(alphabet, mask=False)
    torch.manual_seed(3)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    values = {**SHAPE, "vocab_size": len(tokenizer) + free_rows, **ids, **changes}
    model = (
        Qwen3ForCausalLM(Qwen3Config(**values)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**values))
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
