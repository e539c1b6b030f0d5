"""The torch engine and LMDeploy's with the same random weights, and in what their trajectories agree."""

import dataclasses
import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from tests.packed import group_pieces
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dirl.attention import ATTENTION_NAME
from dirl.models import BlockDiffusionLM, ModelDescription, NewModel, SDARMoeConfig
from dirl.packing.rows import pack
from dirl.rollout import LMDeployEngine, TorchEngine
from dirl.seeds import derived_seed
from dirl.types import DecodingParams, GenerationRequest, Trajectory

QUIET = 0.1
"""Embeddings of ids that the tokenizer has not are so much smaller: 260 tokens compete for the argmax, not 150,000."""


@dataclass(frozen=True)
class Shape:
    """A model's size, and that of the rollouts it is tried with.

    Args:
        initializer_range: standard deviation of all weights but the embeddings.
        embedding_range: that of the embeddings, which are the head too: times sqrt(hidden_size) it is that of the
            logits.
        experts: of each layer, two of them for a token, each of an eighth of `intermediate_size`; 0: a dense model.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    initializer_range: float = 0.02
    embedding_range: float = 0.3
    requests: int = 64
    longest_prompt: int = 60
    response_tokens: int = 32
    max_batch_size: int = 32
    kv_blocks: int = 512
    page_tokens: int = 64
    prefill_tokens: int = 2048
    check: bool = True
    experts: int = 0

    def engine_settings(self) -> dict[str, int | bool]:
        names = ("max_batch_size", "kv_blocks", "page_tokens", "prefill_tokens", "check")
        return {name: getattr(self, name) for name in names}

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Of keys and values in all pages."""
        return 2 * self.kv_blocks * self.page_tokens * self.layers * self.kv_heads * self.head_dim * dtype.itemsize


# With these ranges the logits' deviation is 9 and the best token has a probability of 0.77. On a CPU, bf16 moves log-
# probs of greedy tokens by 0.03 on average against fp32, at most 0.2, and flips the argmax at 2 of 100 positions.
SDAR_0_6B = Shape(1024, 3072, 28, 16, 8, 128, 151936)
SDAR_1_7B = Shape(2048, 6144, 28, 16, 8, 128, 151936, embedding_range=0.2)


class ShapedModel(NewModel):
    """Random weights of a shape, made in fp32 on the device. The tokenizer knows bytes alone."""

    def __init__(self, shape: Shape, block_size: int, device: torch.device) -> None:
        super().__init__(
            block_size=block_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=4096,
            rope_theta=1e6,
            initializer_range=shape.initializer_range,
        )
        self.size, self.device = shape, device

    def describe(self) -> ModelDescription:
        description = super().describe()
        config = self._with_experts(description.config) if self.size.experts else description.config
        config.vocab_size = self.size.vocab_size
        spec = dataclasses.replace(description.spec, vocab_size=self.size.vocab_size)
        return dataclasses.replace(description, config=config, spec=spec)

    def _with_experts(self, config: PreTrainedConfig) -> PreTrainedConfig:
        values = {
            name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")
        }
        experts = {"num_experts": self.size.experts, "moe_intermediate_size": self.size.intermediate_size // 8}
        return SDARMoeConfig(**values | experts, num_experts_per_tok=2, norm_topk_prob=True)

    @torch.no_grad()
    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        with torch.random.fork_rng(), self.device:
            torch.manual_seed(self.seed)
            backbone = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)
        embeddings = backbone.get_input_embeddings().weight
        embeddings *= self.size.embedding_range / self.size.initializer_range
        embeddings[config.mask_token_id + 1 :] *= QUIET  # the mask token is the tokenizer's last
        return backbone.to(self.device)


class Pair:
    """Both engines, and the trainer's model whose weights they get. `block_size` is the diffusion blocks'."""

    def __init__(
        self, shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int, **settings: object
    ) -> None:
        self.shape, self.device, self.dtype, self.block_size = shape, device, dtype, block_size
        gc.collect()  # of the pair before
        if device.type == "cuda":
            torch.cuda.empty_cache()
        source = ShapedModel(shape, block_size, device)
        self.description = source.describe()
        self.backbone = source.build(self.description.config)
        self.reference = TorchEngine(shape.max_batch_size, dtype=str(dtype).removeprefix("torch."))
        self.engine = LMDeployEngine(**shape.engine_settings() | settings)

    def set_up(self, engine: TorchEngine | LMDeployEngine) -> None:
        device = "cuda" if engine is self.engine else str(self.device)  # on a CPU, LMDeploy's stand-in answers to cuda
        engine.setup(self.description.config, self.description.tokenizer, self.description.spec, device)
        engine.dtype = self.dtype  # the stand-in computes in fp32

    def update(self, engine: TorchEngine | LMDeployEngine, policy_version: int = 0) -> None:
        engine.update_weights(self.description.family.weights(self.backbone, engine.dtype), policy_version)

    def requests(self) -> list[GenerationRequest]:
        """Prompts of all lengths modulo the block size, each asked once, with seeds of 63 bits."""
        return [request(f"p{i}", 0, self.shape.longest_prompt) for i in range(self.shape.requests)]

    def decoding(self, temperature: float) -> DecodingParams:
        return DecodingParams(threshold=0.9, temperature=temperature, max_response_tokens=self.shape.response_tokens)

    @torch.no_grad()
    def trainer_distances(self, trajectories: Sequence[Trajectory], decoding: DecodingParams) -> Tensor:
        """|log-prob of the engine - log-prob of the trainer's packed forward|, one per committed token."""
        spec = self.description.spec
        segments = [s for t in trajectories for s in group_pieces([t], spec, [1.0], share_prompt=True)]
        model = BlockDiffusionLM(self.backbone, spec)
        distances = []
        for batch in pack(segments, 8192):
            row = batch.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
                scores = model(row, decoding, entropy=False)
            distances.append((scores.logprobs - row.columns["behaviour_logprobs"][scores.positions]).abs().cpu())
        return torch.cat(distances)


@contextmanager
def engine_pair(
    shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int, **settings: object
) -> Iterator[Pair]:
    """Both engines with the weights; closed in the end."""
    pair = Pair(shape, device, dtype, block_size, **settings)
    try:
        for engine in (pair.reference, pair.engine):
            pair.set_up(engine)
            pair.update(engine)
        yield pair
    finally:
        pair.engine.close()


def request(prompt_id: str, sample_index: int, longest: int, run: int = 0) -> GenerationRequest:
    """The same prompt for the same id; another seed for each sample and run."""
    choose = random.Random(prompt_id)
    prompt = tuple(choose.randrange(256) for _ in range(choose.randrange(1, longest)))
    return GenerationRequest(prompt_id, sample_index, prompt, derived_seed(prompt_id, sample_index, run))


@torch.no_grad()
def nudge(model: nn.Module, share: float) -> None:
    """Another policy: noise of `share` of each weight's deviation. On a GPU the host does not wait for it."""
    for seed, parameter in enumerate(model.parameters()):
        generator = torch.Generator(parameter.device).manual_seed(seed)
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        parameter += noise * (share * parameter.std())


def agreement(made: Sequence[Trajectory], expected: Sequence[Trajectory], block_size: int) -> dict[str, float]:
    """How far trajectories of the same requests agree.

    Returns:
        equal_responses: share of responses equal to the token; equal_traces: to the denoising step, too.
        equal_tokens: tokens before the first difference, of all.
        logprob_*: |difference of log-probs| in the leading blocks that were denoised alike.
    """
    wanted = {t.key: t for t in expected}
    assert sorted(t.key for t in made) == sorted(wanted), "every request should be answered once"
    pairs = [(t, wanted[t.key]) for t in made]
    responses = [x.response_ids == y.response_ids for x, y in pairs]
    traces = [same and x.step_map == y.step_map for same, (x, y) in zip(responses, pairs, strict=True)]
    distances = [
        abs(a - b)
        for x, y in pairs
        for a, b in list(zip(x.behaviour_logprobs, y.behaviour_logprobs, strict=False))[: alike(x, y, block_size)]
    ]
    return {
        "equal_responses": sum(responses) / len(pairs),
        "equal_traces": sum(traces) / len(pairs),
        "equal_tokens": equal_tokens(pairs),
        **spread("logprob", torch.tensor(distances)),
    }


def equal_tokens(pairs: Sequence[tuple[Trajectory, Trajectory]]) -> float:
    """Tokens before the first difference, as a share of those of the second of each pair."""
    return sum(common(x.response_ids, y.response_ids) for x, y in pairs) / sum(len(y.response_ids) for _, y in pairs)


def by_chance(trajectories: Sequence[Trajectory]) -> float:
    """`equal_tokens` of responses to different prompts."""
    ordered = sorted(trajectories, key=lambda t: t.key)
    return equal_tokens(list(pairwise(ordered)))


def alike(x: Trajectory, y: Trajectory, block_size: int) -> int:
    """Positions of the leading blocks that have equal tokens, committed by equal steps."""
    same = common(*(list(zip(t.response_ids, t.step_map, strict=True)) for t in (x, y)))
    start = len(x.prompt_ids)
    return max((start + same) // block_size * block_size - start, 0)


def common(a: Sequence, b: Sequence) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def spread(name: str, values: Tensor) -> dict[str, float]:
    if not len(values):
        return {f"{name}_mean": float("nan"), f"{name}_p99": float("nan"), f"{name}_max": float("nan")}
    values = values.double()
    return {
        f"{name}_mean": values.mean().item(),
        f"{name}_p99": values.quantile(0.99).item(),
        f"{name}_max": values.max().item(),
    }
