"""How many tokens, visible pairs and scored positions a run of assumed lengths has: the packing in closed form."""

import math
from dataclasses import dataclass, replace

from dirl.diffusion.noise import NoiseConfig
from dirl.packing.splitting import row_limit
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
    block_size: int

    @property
    def response(self) -> Work:
        return self.clean + self.noised


@dataclass(frozen=True)
class GroupLoad:
    """The training on one group, or one conversation."""

    clean: Work
    noised: Work
    longest: float
    """Tokens of the last view with all that it attends to, or of the row that holds it if that is over the budget."""

    @property
    def work(self) -> Work:
        return self.clean + self.noised


def response_load(lengths: Lengths, block_size: int, views: float, scored: float) -> SequenceLoad:
    """A response behind its prompt, as `dirl.packing.rows` lays it out.

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
    return SequenceLoad(prompt, clean, replace(noised, scored=scored), size)


def rl_views(lengths: Lengths, block_size: int) -> tuple[float, float]:
    """Views per block and scored positions: every position of the decoded blocks is scored once."""
    head = lengths.prompt_tokens % block_size
    blocks = math.ceil((head + lengths.response_tokens) / block_size)
    positions = blocks * block_size - head
    steps = max(positions / lengths.tokens_per_step, blocks)  # a block takes a step at the least
    return steps / blocks, positions


def sft_views(lengths: Lengths, block_size: int, noise: NoiseConfig) -> tuple[float, float]:
    """Expected views per block (those that mask nothing are left out) and scored positions of the response."""
    if block_size == 1:
        return 1.0, float(lengths.response_tokens)
    low, high = noise.t_min, noise.t_max
    spared = (1 - low) ** block_size  # of a block without a masked position, at t = t_min
    if high > low:
        power = block_size + 1
        spared = ((1 - low) ** power - (1 - high) ** power) / (power * (high - low))
    masked = 0.5 if noise.complementary else (low + high) / 2
    views = noise.views_per_block
    return views * (1 - spared), views * masked * lengths.response_tokens


def group_load(sequence: SequenceLoad, group_size: float, token_budget: int, share_prompt: bool) -> GroupLoad:
    """The responses to one prompt. A group that is spread over rows has a copy of its prompt in each of them.

    A response that exceeds the budget is split, see `dirl.packing.splitting`.
    """
    whole = sequence.prompt.tokens + sequence.response.tokens
    needed = sequence.prompt.tokens + sequence.clean.tokens + sequence.block_size
    limit = row_limit(needed, token_budget)
    room = limit - sequence.prompt.tokens
    parts = _clean_of_parts(sequence, room)
    clean = sum(parts[1:], parts[0]) * group_size
    most = group_size * len(parts)
    spread = (clean.tokens + sequence.noised.tokens * group_size) / room + 0.5
    over = needed > token_budget  # then no part shares a row
    copies = min(most, max(1.0, spread)) if share_prompt and not over else most
    longest = min(whole, limit) if over else needed
    return GroupLoad(clean + sequence.prompt * copies, sequence.noised * group_size, longest)


def _clean_of_parts(sequence: SequenceLoad, room: float) -> list[Work]:
    """The clean tokens before the end of each part; one part if the response fits.

    A part from share f of the response to share g of it has g of the clean tokens and g - f of the noised ones.
    """
    clean, response = sequence.clean, sequence.response.tokens
    with_prompt = clean.tokens * sequence.prompt.tokens  # of the clean pairs; the others grow with the square
    parts, end = [], 0.0
    while end < 1:
        left = room - end * clean.tokens
        end = 1.0 if response <= room else min(1.0, end + left / response)
        parts.append(Work(end * clean.tokens, end * with_prompt + end * end * (clean.pairs - with_prompt)))
    return parts


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
