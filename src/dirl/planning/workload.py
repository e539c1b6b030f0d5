"""How many tokens, visible pairs and scored positions a run of assumed lengths has: the packing in closed form."""

import math
from dataclasses import dataclass, replace

from dirl.diffusion.noise import NoiseConfig
from dirl.planning.flops import Work


@dataclass(frozen=True)
class Lengths:
    """Assumed means.

    Args:
        prompt_tokens: of a prompt, or of an SFT conversation before its response.
        response_tokens: of a response, the stop token included.
        tokens_per_step: response tokens that a denoising step commits.
    """

    prompt_tokens: int
    response_tokens: int
    tokens_per_step: float


@dataclass(frozen=True)
class SequenceLoad:
    """One response: its clean copy and its noised views; the prompt is apart, since a group shares it."""

    prompt: Work
    clean: Work
    noised: Work

    @property
    def response(self) -> Work:
        return self.clean + self.noised


@dataclass(frozen=True)
class GroupLoad:
    """The training on one group, or one conversation."""

    clean: Work
    noised: Work
    longest: float
    """Tokens of the longest piece that cannot be divided; a row is that long even if the budget is smaller."""

    @property
    def work(self) -> Work:
        return self.clean + self.noised


def response_load(lengths: Lengths, block_size: int, views: float, scored: float) -> SequenceLoad:
    """A response behind its prompt, as `dirl.data.packing` lays it out.

    The prompt's last, partly filled block belongs to the response; the clean copy of the very last block is
    left out, as nothing sees it. A query sees the clean tokens before its block, and its own block.

    Args:
        views: noised views per block.
        scored: scored positions of the whole response.
    """
    size = block_size
    shared, head = divmod(lengths.prompt_tokens, size)
    blocks = math.ceil((head + lengths.response_tokens) / size)
    before = size * size  # pairs of one block's queries with one block's keys
    prompt = Work(shared * size, before * shared * (shared + 1) / 2)
    # block j of the response sees shared + j blocks before it, and itself
    clean = Work((blocks - 1) * size, before * _sum_of(shared + 1, blocks - 1))
    noised = Work(blocks * size, before * _sum_of(shared + 1, blocks)) * views
    return SequenceLoad(prompt, clean, replace(noised, scored=scored))


def rl_views(lengths: Lengths, block_size: int) -> tuple[float, float]:
    """Views per block and scored positions: every position of the decoded blocks is scored once."""
    head = lengths.prompt_tokens % block_size
    blocks = math.ceil((head + lengths.response_tokens) / block_size)
    positions = blocks * block_size - head
    steps = max(positions / lengths.tokens_per_step, blocks)  # a block takes a step at the least
    return steps / blocks, positions


def sft_views(lengths: Lengths, block_size: int, noise: NoiseConfig) -> tuple[float, float]:
    """Expected views per block (those that mask nothing are left out) and scored positions of the response."""
    low, high = noise.t_min, noise.t_max
    spared = (1 - low) ** block_size  # of a block without a masked position, at t = t_min
    if high > low:
        power = block_size + 1
        spared = ((1 - low) ** power - (1 - high) ** power) / (power * (high - low))
    masked = 0.5 if noise.complementary else (low + high) / 2
    views = noise.views_per_block
    return views * (1 - spared), views * masked * lengths.response_tokens


def group_load(sequence: SequenceLoad, group_size: int, token_budget: int, share_prompt: bool) -> GroupLoad:
    """The responses to one prompt. A group that is spread over rows has a copy of its prompt in each of them."""
    responses = group_size * sequence.response.tokens
    room = token_budget - sequence.prompt.tokens
    spread = responses / room + 0.5 if room > 0 else group_size
    copies = min(group_size, max(1.0, spread)) if share_prompt else group_size
    longest = sequence.prompt.tokens + sequence.response.tokens
    return GroupLoad(sequence.clean * group_size + sequence.prompt * copies, sequence.noised * group_size, longest)


def rows(load: GroupLoad, groups: float, token_budget: int) -> int:
    """Micro-batches of so many groups at full rows; packing leaves a few per cent empty."""
    return math.ceil(groups * load.work.tokens / max(token_budget, load.longest))


def decoding_work(lengths: Lengths, block_size: int) -> Work:
    """Generating one response: a forward over the block for each denoising step, one more to keep its keys.

    The head meets what is still masked. The prefill of the prompt is not in it: a group shares it.
    """
    views, positions = rl_views(lengths, block_size)
    load = response_load(lengths, block_size, views + 1, 0.0)
    masked = positions * (views + 1) / 2  # all of a block before its first step, the last few before its last
    return replace(load.noised, scored=masked)


def _sum_of(first: int, count: int) -> float:
    """first + (first + 1) + ..., `count` terms."""
    return count * first + count * (count - 1) / 2
