"""The sizes of a Qwen3-shaped model that decide what it costs, and its numbers of parameters."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from dirl.models import register_models
from dirl.models.source import SUPPORTED, check_architecture

VOCABULARY = 151_936


@dataclass(frozen=True)
class ModelShape:
    """Sizes by their names in the model's config; `experts` is 0 in a dense model.

    A model with experts may have dense layers too: `dense_layers` of the `num_hidden_layers` have an MLP of
    `intermediate_size` each.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    dense_layers: int = 0

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "ModelShape":
        """The shape of a transformers config of one of the supported model types."""
        check_architecture(config, config.name_or_path or config.model_type)
        layers, experts = config.num_hidden_layers, getattr(config, "num_experts", 0)
        sparse = [i for i in range(layers) if experts and _is_sparse(config, i)]
        return cls(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            tie_word_embeddings=config.tie_word_embeddings,
            experts=experts if sparse else 0,
            experts_per_token=config.num_experts_per_tok if sparse else 0,
            expert_size=config.moe_intermediate_size if sparse else 0,
            dense_layers=layers - len(sparse),
        )

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def sparse_layers(self) -> int:
        return self.num_hidden_layers - self.dense_layers

    @property
    def attention_weights(self) -> int:
        """Entries of the four projections of a layer."""
        return 2 * self.hidden_size * (self.query_size + self.key_size)

    @property
    def dense_mlp_weights(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def expert_weights(self) -> int:
        return 3 * self.hidden_size * self.expert_size

    @property
    def router_weights(self) -> int:
        return self.hidden_size * self.experts

    @property
    def norm_weights(self) -> int:
        """Of a layer: the two of the residual stream, and those of queries and keys."""
        return 2 * self.hidden_size + 2 * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Of the largest layer, which is what FSDP2 gathers at a time."""
        sizes = []
        if self.dense_layers:
            sizes.append(self.dense_mlp_weights)
        if self.sparse_layers:
            sizes.append(self.router_weights + self.experts * self.expert_weights)
        return self.attention_weights + self.norm_weights + max(sizes)

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def root_parameters(self) -> int:
        """What is in no layer: embedding, head, last norm."""
        return self.embedding_parameters * (1 if self.tie_word_embeddings else 2) + self.hidden_size

    @property
    def parameters(self) -> int:
        every = self.num_hidden_layers * (self.attention_weights + self.norm_weights)
        dense = self.dense_layers * self.dense_mlp_weights
        sparse = self.sparse_layers * (self.router_weights + self.experts * self.expert_weights)
        return every + dense + sparse + self.root_parameters

    @property
    def multiplied_weights(self) -> int:
        """Entries of the matrices that each token of a forward is multiplied with; the head is not among them."""
        every = self.num_hidden_layers * self.attention_weights
        dense = self.dense_layers * self.dense_mlp_weights
        sparse = self.sparse_layers * (self.router_weights + self.experts_per_token * self.expert_weights)
        return every + dense + sparse


def _is_sparse(config: PreTrainedConfig, layer: int) -> bool:
    return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0


SHAPES: dict[str, ModelShape] = {
    "sdar-1.7b": ModelShape(2048, 6144, 28, 16, 8, 128, VOCABULARY, True, dense_layers=28),
    "sdar-4b": ModelShape(2560, 9728, 36, 32, 8, 128, VOCABULARY, True, dense_layers=36),
    "sdar-8b": ModelShape(4096, 12288, 36, 32, 8, 128, VOCABULARY, False, dense_layers=36),
    "sdar-30b-a3b": ModelShape(2048, 6144, 48, 32, 4, 128, VOCABULARY, False, 128, 8, 768),
}
"""Qwen3's, by the names of the SDAR models that have them."""

NAMED_BLOCK_SIZE = 4
"""Of SDAR's chat models, where a named shape stands for a config."""


def named_or_file(model: str) -> tuple[ModelShape, int | None]:
    """Shape and block size (None: the file has none) of one of `SHAPES` or of a config.json."""
    if model in SHAPES:
        return SHAPES[model], NAMED_BLOCK_SIZE
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"model_config={model!r} is no file here; name a config.json, or one of {', '.join(SHAPES)}")
    values = json.loads(path.read_text(encoding="utf-8"))
    kind = values.pop("model_type", None)
    if kind not in SUPPORTED:
        raise ValueError(f"{path}: model_type={kind!r}; supported are {', '.join(SUPPORTED)}")
    register_models()
    return ModelShape.of(AutoConfig.for_model(kind, **values)), values.get("block_size")
