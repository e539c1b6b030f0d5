"""The sizes of a decoder that decide what it costs, and its numbers of parameters."""

from dataclasses import dataclass, replace

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class ModelShape:
    """Sizes by their names in the configs of transformers; `experts` is 0 in a dense model.

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
    head_norms: bool = True
    """Whether queries and keys are normalised, head by head."""
    shared_expert_size: int = 0
    """Width of what every token passes beside its experts, in layers with experts."""
    fused: bool = False
    """As in LLaDA2, queries, keys and values are one product, half a head is rotated, the router computes in fp32."""

    @classmethod
    def of(
        cls,
        config: PreTrainedConfig,
        experts: int = 0,
        experts_per_token: int = 0,
        expert_size: int = 0,
        *,
        dense_layers: int,
        head_norms: bool = True,
        shared_expert_size: int = 0,
        fused: bool = False,
    ) -> "ModelShape":
        """What most configs call alike is read; what they do not is said. A family calls it from its `shape`."""
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.vocab_size,
            config.tie_word_embeddings,
            experts,
            experts_per_token,
            expert_size,
            dense_layers,
            head_norms,
            shared_expert_size,
            fused,
        )

    @classmethod
    def dense(cls, config: PreTrainedConfig, head_norms: bool = True) -> "ModelShape":
        """The shape that a config of a model without experts has."""
        return cls.of(config, dense_layers=config.num_hidden_layers, head_norms=head_norms)

    def cut(self, processes: int) -> "ModelShape":
        """What is left of a layer on each of a tensor-parallel group; of a model without experts."""
        return replace(
            self,
            num_attention_heads=self.num_attention_heads // processes,
            num_key_value_heads=self.num_key_value_heads // processes,
            intermediate_size=self.intermediate_size // processes,
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
    def shared_weights(self) -> int:
        return 3 * self.hidden_size * self.shared_expert_size

    @property
    def norm_weights(self) -> int:
        """Weights of a layer's norms: two of the residual stream, and those of queries and keys where it has them."""
        return 2 * self.hidden_size + (2 * self.head_dim if self.head_norms else 0)

    @property
    def layer_parameters(self) -> int:
        """Parameters of the largest layer, which is what FSDP2 gathers at a time."""
        sizes = []
        if self.dense_layers:
            sizes.append(self.dense_mlp_weights)
        if self.sparse_layers:
            sizes.append(self.router_weights + self.shared_weights + self.experts * self.expert_weights)
        return self.attention_weights + self.norm_weights + max(sizes)

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def root_parameters(self) -> int:
        """Parameters that are in no layer: embedding, head, last norm."""
        return self.embedding_parameters * (1 if self.tie_word_embeddings else 2) + self.hidden_size

    @property
    def parameters(self) -> int:
        every = self.num_hidden_layers * (self.attention_weights + self.norm_weights)
        dense = self.dense_layers * self.dense_mlp_weights
        sparse = self.sparse_layers * (self.router_weights + self.shared_weights + self.experts * self.expert_weights)
        return every + dense + sparse + self.root_parameters

    @property
    def multiplied_weights(self) -> int:
        """Entries of the matrices that each token of a forward is multiplied with; the head is not among them."""
        every = self.num_hidden_layers * self.attention_weights
        dense = self.dense_layers * self.dense_mlp_weights
        routed = self.experts_per_token * self.expert_weights
        sparse = self.sparse_layers * (self.router_weights + self.shared_weights + routed)
        return every + dense + sparse
