"""Models to measure: of a named shape, with random weights, without tokenizer or download."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dirl.attention import ATTENTION_NAME
from dirl.models import SDARConfig, register_models
from dirl.planning import SHAPES, ModelShape
from dirl.types import ModelSpec

TOYS = {
    "tiny": ModelShape(32, 64, 2, 4, 2, 8, 64, True, dense_layers=2),
    "small": ModelShape(128, 384, 2, 4, 2, 32, 1000, True, dense_layers=2),
    "medium": ModelShape(256, 768, 4, 8, 4, 32, 1000, True, dense_layers=4),
    "deep": ModelShape(256, 768, 6, 8, 4, 32, 1000, True, dense_layers=6),
    "large": ModelShape(1024, 3072, 8, 16, 8, 64, 32_000, True, dense_layers=8),
}


def named_shape(name: str) -> ModelShape:
    """A toy, or a dense shape that `lightning run plan` knows."""
    known = TOYS | {key: shape for key, shape in SHAPES.items() if not shape.experts}
    if name not in known:
        raise ValueError(f"model={name!r}: use one of {', '.join(known)}")
    return known[name]


def model_spec(shape: ModelShape, block_size: int) -> ModelSpec:
    """The last token id is the mask token, the one before it pads and stops."""
    return ModelSpec(block_size, shape.vocab_size - 1, (shape.vocab_size - 2,), shape.vocab_size - 2, shape.vocab_size)


def model_config(shape: ModelShape, block_size: int, max_positions: int = 40960) -> SDARConfig:
    return SDARConfig(
        vocab_size=shape.vocab_size,
        block_size=block_size,
        mask_token_id=shape.vocab_size - 1,
        pad_token_id=shape.vocab_size - 2,
        eos_token_id=shape.vocab_size - 2,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max_positions,
        tie_word_embeddings=shape.tie_word_embeddings,
        rope_parameters={"rope_theta": 1_000_000.0, "rope_type": "default"},
    )


def random_backbone(
    config: SDARConfig, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> PreTrainedModel:
    """The backbone with random weights, made on the device itself."""
    register_models()
    with torch.random.fork_rng(devices=[] if device == "cpu" else [torch.device(device)]), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME)
