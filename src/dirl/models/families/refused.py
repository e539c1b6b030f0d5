"""Models that look like one of ours and are not: refused by name, with the reason, before any weight is read."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

WHOLE_SEQUENCE = "attends to the whole sequence in every layer: it was not trained on blocks, and has no cache of them"
REFUSED_TYPES: Mapping[str, tuple[str, str]] = {
    "llada": ("LLaDA", WHOLE_SEQUENCE),
    "llada_moe": ("LLaDA-MoE", WHOLE_SEQUENCE),
    "wedlm": ("WeDLM", "is strictly causal, over tokens that are put into another order"),
    "fast_dllm_qwen": (
        "Fast-dLLM v2",
        "has its logits shifted by one: a position is predicted where its left neighbour stands, the first of a block "
        "by the block before; trainer and engine score positions where they stand",
    ),
    "diffusion_gemma": ("DiffusionGemma", "has no mask token: its canvas is denoised from random tokens"),
}
"""`model_type` in lower case -> the model, and why it cannot be trained or sampled here."""
I_DLM = ("I-DLM", "is called SDAR, but is strictly causal and has its logits shifted by one")
EDITS = ("LLaDA2.1 or later", "also edits tokens that it has written, which no step map can hold")
OTHERS = "; use one of the models of docs/models.md"


def refuse(values: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for a config of a model that cannot serve.

    Args:
        values: of config.json.
        name: folder or hub name; what a hub calls a model tells apart some whose configs do not.
    """
    kind, last = str(values.get("model_type") or "").lower(), PurePath(name).name.lower()
    if kind in REFUSED_TYPES:
        _refuse(name, REFUSED_TYPES[kind])
    if kind == "dream" and not values.get("block_size"):
        _refuse(name, ("Dream", WHOLE_SEQUENCE))
    named = [last, *(str(v).lower() for v in (values.get("auto_map") or {}).values())]
    if kind.startswith("sdar") and any(re.search(r"(?<![a-z])i-?dlm", text) for text in named):
        _refuse(name, I_DLM)
    if kind == "llada2_moe" and re.search(r"llada-?2[._][1-9]", last):
        _refuse(name, EDITS)
    if kind == "llada2_moe" and "image_token_offset" in values:
        _refuse(name, ("LLaDA2.0-Uni", "has images among its tokens"))


def refuse_code(kind: str, code: Mapping[str, bytes], name: str) -> None:
    """Raise ValueError where the code beside a model, which is read and not run, says that it cannot serve.

    Args:
        kind: `model_type` of its config.
    """
    text = b"\n".join(content for file, content in code.items() if file.endswith(".py")).lower()
    if kind == "llada2_moe" and b"editing_threshold" in text:
        _refuse(name, EDITS)
    if kind.startswith("sdar") and re.search(rb"(?<![a-z])i-?dlm", text):
        _refuse(name, I_DLM)


def _refuse(name: str, found: tuple[str, str]) -> None:
    model, reason = found
    raise ValueError(f"model {name!r} is {model}, which {reason}{OTHERS}")
