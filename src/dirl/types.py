"""The values that travel between the parts: prompts, decoding settings, requests, trajectories.

The life of one response: a `Prompt` becomes `group_size` `GenerationRequest`s; an engine turns each into
a `Trajectory`; a reward fills `reward` and `rewards`, the group fills `advantage`; an objective and packing turn many
of them into a `PackedBatch` (`dirl.batches`), which is all that the trainer sees.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dirl.finite import NotFiniteError, first_not_finite
from dirl.spans import Spans, spans

Strategy = Literal["low_confidence_dynamic", "low_confidence_static", "sequential"]
Confidence = Literal["sampled", "max"]
FinishReason = Literal["stop", "length", "stop_string"]
"""A response ends by a stop token, which is its last; by the length limit; by a string that its text ends with."""
Likelihood = Literal["tokens", "trajectory"]
"""Whether committed tokens alone are scored, or also that the others were not committed."""


@dataclass(frozen=True)
class ModelSpec:
    """What every part must agree on about the model; read once from its config, then passed along."""

    block_size: int
    mask_token_id: int
    stop_token_ids: tuple[int, ...]
    """Any of these ends a response; the first is the end token that SFT fills the last block with."""
    pad_token_id: int
    vocab_size: int
    """Rows of the model's embedding and head, which may be more than the tokenizer has tokens."""
    unknown_ids: tuple[int, ...] = ()
    """Ids below `vocab_size` that the tokenizer has no token for, in order."""

    @property
    def banned(self) -> Spans:
        """What is never drawn and has no part in the softmax, in engines and trainer: the mask token, unknown ids.

        The tokenizer's special tokens (pad, roles, ...) have a text and stay: that a trained model does not write them
        is learned, and without them its distribution would not be the one that it was trained to have.
        """
        return spans((*self.unknown_ids, self.mask_token_id))


@dataclass(frozen=True)
class DecodingParams:
    """How a block is denoised. One value for a whole rollout; seeds are per request.

    Args:
        strategy: which masked positions a denoising step commits.
        threshold: `low_confidence_dynamic` commits every position at least this confident.
        denoising_steps: per block, of the two static strategies, which commit B // denoising_steps positions in each.
            None: one position a denoising step.
        temperature: divides the logits; 0 is greedy (argmax, confidences at temperature 1).
        top_k: draw from the k most probable tokens only; 0: all.
        top_p: nucleus; 1: all.
        min_p: drop tokens less probable than min_p times the most probable one; 0: none.
        max_response_tokens: length limit of `response_length`.
        stop_strings: a response ends with the block in which its text completes one of them, as
            `dirl.rollout.stop_strings` says; it is the last of the text.
        confidence: `sampled` ranks positions by the probability of the drawn token, `max` by the largest
            probability at the position, whatever was drawn.
    """

    strategy: Strategy = "low_confidence_dynamic"
    threshold: float = 0.9
    denoising_steps: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_response_tokens: int = 256
    confidence: Confidence = "sampled"
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        listed = () if isinstance(self.stop_strings, str) else tuple(self.stop_strings)  # JSON has lists

        def check(ok: bool, name: str, remedy: str) -> None:
            if not ok:
                raise ValueError(f"decoding.{name}={getattr(self, name)!r}: {remedy}")

        strategies = ("low_confidence_dynamic", "low_confidence_static", "sequential")
        check(self.strategy in strategies, "strategy", f"use one of {', '.join(strategies)}")
        check(self.confidence in ("sampled", "max"), "confidence", "use sampled or max")
        check(0 < self.threshold <= 1, "threshold", "use a probability in (0, 1]")
        check(self.denoising_steps is None or self.denoising_steps >= 1, "denoising_steps", "use at least 1, or null")
        check(0 <= self.temperature < math.inf, "temperature", "use 0 for greedy decoding or a positive number")
        check(self.top_k >= 0, "top_k", "use 0 for no limit or a positive number")
        check(0 < self.top_p <= 1, "top_p", "use a probability in (0, 1]")
        check(0 <= self.min_p <= 1, "min_p", "use a probability in [0, 1]")
        check(self.max_response_tokens >= 1, "max_response_tokens", "use at least 1")
        good = all(isinstance(text, str) and text for text in listed) and not isinstance(self.stop_strings, str)
        check(good, "stop_strings", "use a list of strings, none of them empty")
        object.__setattr__(self, "stop_strings", listed)

    @property
    def choice_is_random(self) -> bool:
        """Whether the positions that a denoising step commits depend on what was drawn."""
        return self.temperature > 0 and self.confidence == "sampled" and self.strategy != "sequential"

    def quota(self, block_size: int) -> int:
        """Positions that a static strategy commits per denoising step: max(1, B // steps)."""
        steps = block_size if self.denoising_steps is None else self.denoising_steps
        return max(1, block_size // steps)


@dataclass(frozen=True)
class Prompt:
    """One question, tokenised by the chat template, generation prompt included."""

    prompt_id: str
    input_ids: tuple[int, ...]
    question: str
    ground_truth: str
    info: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The other columns of its row, for rewards."""


@dataclass(frozen=True)
class GenerationRequest:
    """One response to make. (prompt_id, sample_index) is its identity, in results and rewards alike."""

    prompt_id: str
    sample_index: int
    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Trajectory:
    """One response with the trace of its denoising.

    `response_ids`, `step_map` and `behaviour_logprobs` cover every position of every decoded block that is
    not a prompt token, the tail after the stop token included: the tail was context for the tokens before
    it. `response_length` counts up to and including the stop token.
    """

    prompt_id: str
    sample_index: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_length: int
    step_map: tuple[int, ...]
    """1 for a token committed by the first forward of its block, 2 for the second, ..."""
    behaviour_logprobs: tuple[float, ...]
    """Log-probability, in nats, with which the engine drew each token at the denoising step that committed it."""
    finish_reason: FinishReason
    policy_version: int
    reward: float | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    correct: bool | None = None
    """Whether the reward that judges says so; None: no reward has been asked."""
    advantage: float | None = None

    def __post_init__(self) -> None:
        """NotFiniteError if one of its numbers is not finite, wherever it comes from: engine, file, wire or reward."""
        numbers = {
            "behaviour_logprobs": self.behaviour_logprobs,
            "reward": self.reward,
            "rewards": self.rewards,
            "advantage": self.advantage,
        }
        if found := first_not_finite(numbers):
            raise NotFiniteError(f"trajectory {self.prompt_id}#{self.sample_index}: {found}; numbers must be finite")

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.sample_index

    @property
    def text_ids(self) -> tuple[int, ...]:
        """Response tokens up to and including the stop token."""
        return self.response_ids[: self.response_length]

    def denoising_steps(self, block_size: int) -> int:
        """Forwards that committed tokens, summed over the blocks."""
        head = -len(self.prompt_ids) % block_size or block_size
        starts = [0, *range(head, len(self.step_map), block_size)]
        return sum(max(self.step_map[a:b]) for a, b in zip(starts, [*starts[1:], len(self.step_map)], strict=True))

    def check(self, spec: ModelSpec) -> None:
        """Raise ValueError if this trajectory cannot have come from a model of this spec."""
        who = f"trajectory {self.prompt_id}#{self.sample_index}"
        length = len(self.response_ids)
        if not (len(self.step_map) == len(self.behaviour_logprobs) == length):
            raise ValueError(
                f"{who}: response_ids, step_map and behaviour_logprobs have {length}, {len(self.step_map)} and "
                f"{len(self.behaviour_logprobs)} entries; they must cover the same positions"
            )
        if length == 0 or (len(self.prompt_ids) + length) % spec.block_size:
            raise ValueError(
                f"{who}: prompt ({len(self.prompt_ids)}) plus response ({length}) tokens do not fill blocks of "
                f"block_size={spec.block_size}; was it made with another block size?"
            )
        if not 1 <= self.response_length <= length:
            raise ValueError(f"{who}: response_length={self.response_length} is not within 1..{length}")
        if self.finish_reason not in get_args(FinishReason):
            raise ValueError(f"{who}: finish_reason={self.finish_reason!r}; expected stop, length or stop_string")
        if min(self.step_map) < 1:
            raise ValueError(f"{who}: step_map holds {min(self.step_map)}; denoising steps are counted from 1")
        unknown = [i for i in (*self.prompt_ids, *self.response_ids) if not 0 <= i < spec.vocab_size]
        if unknown:
            raise ValueError(
                f"{who}: token id {unknown[0]} does not fit vocab_size={spec.vocab_size}; use the model's tokenizer"
            )
        drawn = set(self.response_ids)
        if spec.mask_token_id in drawn:
            raise ValueError(
                f"{who}: the response holds the mask token {spec.mask_token_id}, which is never a legal output"
            )
        if untold := sorted(drawn & set(spec.unknown_ids)):
            raise ValueError(
                f"{who}: the response holds the id {untold[0]}, for which the tokenizer has no token and which is "
                "never a legal output: make the trajectories anew"
            )


def trajectory_from_dict(row: dict) -> Trajectory:
    """The inverse of `dataclasses.asdict`, also after a trip through JSON."""
    sequences = ("prompt_ids", "response_ids", "step_map", "behaviour_logprobs")
    fields: dict[str, Any] = {k: tuple(v) if k in sequences else v for k, v in row.items()}
    return Trajectory(**fields)


def rewards_of(group: Sequence[Trajectory]) -> list[float]:
    """The total rewards of trajectories that have been scored."""
    rewards = [trajectory.reward for trajectory in group]
    assert None not in rewards, "a trajectory that has not been scored"
    return [reward for reward in rewards if reward is not None]
