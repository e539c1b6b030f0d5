"""LLaDA2.0: a sigmoid router over groups of experts, a shared expert, rotary embedding of half of each head.

Names are those of the published checkpoints; norms, MLPs, rotary embedding and grouped experts are transformers' own.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4_moe.modeling_glm4_moe import (
    Glm4MoeMLP,
    Glm4MoeRMSNorm,
    Glm4MoeRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from dirl.models.experts import experts_implementation


class LLaDA2MoeConfig(PreTrainedConfig):
    """The defaults are those of LLaDA2.0-mini."""

    model_type = "llada2_moe"

    vocab_size: int = 157_184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 16_384
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    partial_rotary_factor: float = 0.5
    num_experts: int = 256
    num_experts_per_tok: int = 8
    num_shared_experts: int = 1
    moe_intermediate_size: int = 512
    first_k_dense_replace: int = 1
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


class LLaDA2MoeAttention(nn.Module):
    """Queries, keys and values in one product; norms of each head; the first part of each head is rotated."""

    def __init__(self, config: LLaDA2MoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = self.heads // self.key_heads
        self.scaling, self.is_causal = self.head_dim**-0.5, False
        rows = (self.heads + 2 * self.key_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=False)
        self.query_layernorm = Glm4MoeRMSNorm(self.head_dim, config.rms_norm_eps)
        self.key_layernorm = Glm4MoeRMSNorm(self.head_dim, config.rms_norm_eps)
        self.dense = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Float[Tensor, "N T D"],
        position_embeddings: tuple[Float[Tensor, "#N T R"], Float[Tensor, "#N T R"]],
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Float[Tensor, "N T D"]:
        every = self.query_key_value(hidden_states).unflatten(-1, (-1, self.head_dim))
        query, key, value = every.split((self.heads, self.key_heads, self.key_heads), dim=-2)
        query, key = self.query_layernorm(query), self.key_layernorm(key)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings, unsqueeze_dim=2)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # rotated before: the output needs no copy
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.dense(output.flatten(-2))


class LLaDA2MoeGate(nn.Module):
    """Which experts a token is sent to, and with which weights; in fp32 whatever the compute is.

    With s = sigmoid(W x), experts are chosen by s + expert_bias: of their groups, those with the largest sums
    of two scores, and in these the best experts. Their weights are s, without the bias, over their sum, times a scale.
    """

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.choices, self.groups, self.kept_groups = config.num_experts_per_tok, config.n_group, config.topk_group
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.expert_bias: Tensor
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(self, hidden: Float[Tensor, "T D"]) -> tuple[Int64[Tensor, "T k"], Float32[Tensor, "T k"]]:
        """[T, D] -> experts [T, k], weights [T, k] fp32."""
        with torch.autocast(hidden.device.type, enabled=False):
            scores = F.linear(hidden.float(), self.weight.float()).sigmoid()
            index = self.choose(scores.detach() + self.expert_bias)
            weights = scores.gather(1, index)
            if self.choices > 1:
                weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            return index, weights * self.scale

    def choose(self, scores: Float32[Tensor, "T E"]) -> Int64[Tensor, "T k"]:
        """[T, E] -> [T, k], the best of the best groups."""
        grouped = scores.unflatten(1, (self.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.kept_groups, dim=-1, sorted=False).indices
        left_out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
        return grouped.masked_fill(left_out[..., None], float("-inf")).flatten(1).topk(self.choices, dim=-1).indices


class LLaDA2MoeExperts(nn.Module):
    """Routed experts, and a shared one that every token passes."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.gate = LLaDA2MoeGate(config)
        self.experts = Qwen3MoeExperts(config)
        shared = config.moe_intermediate_size * config.num_shared_experts
        self.shared_experts = Glm4MoeMLP(config, shared) if shared else None

    def forward(self, hidden_states: Float[Tensor, "*T D"]) -> Float[Tensor, "*T D"]:
        tokens = hidden_states.flatten(0, -2)
        routed = self.experts(tokens, *self.gate(tokens)).view_as(hidden_states)
        return routed if self.shared_experts is None else routed + self.shared_experts(hidden_states)


class LLaDA2MoeDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: LLaDA2MoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = LLaDA2MoeAttention(config, layer_idx)
        self.mlp = Glm4MoeMLP(config) if layer_idx < config.first_k_dense_replace else LLaDA2MoeExperts(config)
        self.input_layernorm = Glm4MoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Glm4MoeRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Float[Tensor, "N T D"], **kwargs: Any) -> Float[Tensor, "N T D"]:
        hidden_states = hidden_states + self.attention(self.input_layernorm(hidden_states), **kwargs)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LLaDA2MoePreTrainedModel(PreTrainedModel):
    config_class = LLaDA2MoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDA2MoeDecoderLayer"]  # noqa: RUF012 - as transformers has it
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["expert_bias"]  # noqa: RUF012
    _can_set_experts_implementation_cached_value = True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """The experts are computed as `dirl.models.experts` does, unless the config says otherwise."""
        return super().get_correct_experts_implementation(requested_experts or experts_implementation())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, LLaDA2MoeGate):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.expert_bias)
        elif isinstance(module, Qwen3MoeExperts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)


class LLaDA2MoeModel(LLaDA2MoePreTrainedModel):
    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LLaDA2MoeDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Glm4MoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Glm4MoeRotaryEmbedding(config=config)  # type: ignore[arg-type]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value

    def forward(
        self,
        input_ids: Int64[Tensor, "N T"],
        position_ids: Int64[Tensor, "#N T"],
        attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Positions are given, and so is the mask: as [N, 1, Q, K], or as the attention function takes it."""
        hidden = self.word_embeddings(input_ids)
        rotary = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                position_embeddings=rotary,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class LLaDA2MoeModelLM(LLaDA2MoePreTrainedModel):
    """Logits at a position are of the token at that position."""

    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        self.model = LLaDA2MoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(self, input_ids: Int64[Tensor, "N T"], **kwargs: Any) -> CausalLMOutputWithPast:
        output = self.model(input_ids, **kwargs)
        return CausalLMOutputWithPast(logits=self.lm_head(output.last_hidden_state))
