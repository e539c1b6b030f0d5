"""The trace of one answer as it is shown: its denoising steps in order, its tokens as short runs of characters."""

from collections.abc import Sequence
from dataclasses import dataclass

SYMBOLS = {" ": "␣", "\n": "↵", "\t": "→", "\r": "↵"}
SPECIAL = "⊣"
LONGEST_TOKEN = 8


@dataclass(frozen=True)
class Answer:
    """An answer as it is shown; `tokens`, `step_map` and `logprobs` cover every position of every decoded block."""

    prompt_text: str
    tokens: Sequence[str]
    step_map: Sequence[int]
    """The step map, as in a `Trajectory`."""
    logprobs: Sequence[float]
    """Log-probabilities of the tokens when they were drawn, in nats."""
    response_length: int
    """Positions from here on, the tail after the stop token, are dimmed."""
    block_size: int
    first_block_offset: int
    """Number of prompt tokens in the first block, i.e. prompt length modulo block size."""

    def __post_init__(self) -> None:
        counts = {len(self.tokens), len(self.step_map), len(self.logprobs)}
        assert len(counts) == 1, "tokens, step_map and logprobs cover the same positions"

    @property
    def steps(self) -> tuple[list[tuple[int, int]], list[int]]:
        """The number of denoising steps, as `Trajectory.denoising_steps` counts them."""
        return denoising_steps(self.step_map, self.block_size, self.first_block_offset)


def denoising_steps(
    step_map: Sequence[int], block_size: int, first_block_offset: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """The (block, denoising step) of each forward in order, and for each position the index of that which committed it.

    Blocks are counted from 0, denoising steps from 1 within a block.
    """
    if not 0 <= first_block_offset < block_size:
        raise ValueError(
            f"first_block_offset={first_block_offset} is not within 0..{block_size - 1}; use len(prompt) % B"
        )
    blocks = [(position + first_block_offset) // block_size for position in range(len(step_map))]
    last: dict[int, int] = {}
    for block, step in zip(blocks, step_map, strict=True):
        last[block] = max(step, last.get(block, 0))
    steps = [(block, step) for block, most in last.items() for step in range(1, most + 1)]
    return steps, [steps.index(pair) for pair in zip(blocks, step_map, strict=True)]


def visible(token: str) -> str:
    """One short run of printable characters for any token; special tokens like <|im_end|> become one sign."""
    if is_special(token):
        return SPECIAL
    return shorten("".join(SYMBOLS.get(character, character) for character in token), LONGEST_TOKEN)


def is_special(token: str) -> bool:
    """Whether a token's text looks like the name of one that stands for no text: `<|im_end|>`, but not `<0xE2>`."""
    return len(token) > 2 and token.startswith("<") and token.endswith(">") and not token.startswith("<0x")


def shorten(text: str, length: int) -> str:
    text = text.replace("\n", SYMBOLS["\n"])
    return text if len(text) <= length else text[: length - 1] + "…"
