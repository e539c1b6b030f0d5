"""How one answer was denoised, for a terminal."""

import itertools
import math

from dirl.report.trace import Answer, shorten, visible

PLAIN = "not bold default"
"""Rich style of text that a console's highlighter must not colour."""


def denoising_text(answer: Answer, markup: bool = True) -> str:
    """A line for each denoising step, masked positions as dots, blocks apart.

    With `markup`, in rich's: new tokens green (p >= 0.9), yellow (p >= 0.5) or red, the tail dim; print it with
    rich. Without, plain characters.
    """
    steps, committed_by = answer.steps
    digits = len(str(steps[-1][0] + 1))
    starts = set(range(answer.block_size - answer.first_block_offset, len(answer.tokens), answer.block_size))
    lines = [styled(shorten(answer.prompt_text, 100), "bold default", markup)]
    for row, (block, step) in enumerate(steps):
        cells = []
        for position, token in enumerate(answer.tokens):
            tail = position >= answer.response_length
            style = cell_style(row - committed_by[position], answer.logprobs[position], tail)
            text = visible(token) if row >= committed_by[position] else "·"
            cells.append((style, " " * (position in starts) + text))
        runs = itertools.groupby(cells, key=lambda cell: cell[0])
        line = "".join(styled("".join(text for _, text in run), style, markup) for style, run in runs)
        label = styled(f"{block + 1:>{digits}}.{step} ", "dim", markup)
        lines.append(label + line)
    return "\n".join(lines)


def cell_style(age: int, logprob: float, tail: bool) -> str:
    """Rich style of a position committed `age` steps ago; negative while it is masked."""
    if age < 0 or tail:
        return "dim"
    if age > 0:
        return PLAIN
    probability = math.exp(logprob)
    return "bold green" if probability >= 0.9 else "bold yellow" if probability >= 0.5 else "bold red"


def styled(text: str, style: str, markup: bool) -> str:
    if not markup:
        return text
    from rich.markup import escape

    pieces = text.replace("\\[", "\\\0[").split("\0")  # rich has no way to write these two in one run
    return "".join(f"[{style}]{escape(piece)}[/]" for piece in pieces)
