"""Small random models with distributions that are not flat, and groups of trajectories sampled from them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dirl.models import ModelDescription, NewModel
from dirl.models.source import resolve_spec
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

ALPHABET = "01234+="
SHAPE = dict(
    vocab_size=20,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
"""Of a config of Qwen3's."""
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
"""What one with experts has beside."""


class TinyModel(NewModel):
    """About 19,000 parameters. `nudge` moves all weights a little, by a draw of `nudge_seed`: another policy nearby."""

    def __init__(
        self, block_size: int = 4, tied: bool = True, nudge: float = 0.0, nudge_seed: int = 0, padding: int = 0
    ) -> None:
        super().__init__(
            block_size=block_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=tied,
            initializer_range=0.35,
            alphabet=ALPHABET,
        )
        self.nudge, self.nudge_seed, self.padding = nudge, nudge_seed, padding

    def describe(self) -> ModelDescription:
        """Of a model with `padding` ids more than the tokenizer has tokens, which have weights like all others."""
        made = super().describe()
        made.config.vocab_size += self.padding
        return replace(made, spec=resolve_spec(made.config, made.tokenizer, self.block_size, None, self.stop_tokens))

    def make(self) -> tuple[PreTrainedModel, ModelSpec]:
        description = self.describe()
        return self.build(description.config), description.spec

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        backbone = super().build(config)
        nudge_weights(backbone, self.nudge, self.nudge_seed)
        return backbone


@torch.no_grad()
def nudge_weights(model: nn.Module, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += size * torch.randn(parameter.shape, generator=generator)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Token ids of characters of the alphabet."""
    return tuple(np.random.default_rng([length, seed]).integers(0, len(ALPHABET), length).tolist())


def sample_groups(
    source: NewModel, prompts: Sequence[tuple[int, ...]], group_size: int, decoding: DecodingParams
) -> list[list[Trajectory]]:
    """One group per prompt, drawn by the torch engine from the model of `source`; rewards and advantages are unset."""
    description = source.describe()
    engine = TorchEngine(max_batch_size=5)  # fewer than there are requests: sequences make room for others
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    engine.update_weights(description.family.weights(source.build(description.config)), 0)
    requests = [
        GenerationRequest(str(p), i, ids, seed=1000 * p + i) for p, ids in enumerate(prompts) for i in range(group_size)
    ]
    found = {t.key: t for t in engine.generate(requests, decoding)}
    return [[found[str(p), i] for i in range(group_size)] for p in range(len(prompts))]


def flat_gradient(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The gradient of all parameters as one float64 vector."""
    return torch.cat([g.double().flatten() for g in torch.autograd.grad(loss, list(parameters))])
