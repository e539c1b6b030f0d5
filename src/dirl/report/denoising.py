"""How one answer was denoised, step by step, as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dirl.report.figure import INK, PALE, new_figure, save
from dirl.report.trace import Answer, shorten, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

MASKED, WAITING = "#c3cad3", "#eceff2"


def denoising_picture(path: str | Path, answer: Answer) -> Path:
    """Draw a PNG: a row for each denoising step, a column for each response position."""
    return save(denoising_figure(answer), path, dpi=130)


def denoising_figure(answer: Answer) -> "Figure":
    steps, committed_by = answer.steps
    count, size, offset = len(answer.tokens), answer.block_size, answer.first_block_offset
    figure = new_figure(max(7.0, 2.6 + 0.33 * count), 1.9 + 0.3 * len(steps))
    axes = figure.subplots()
    colours = probability_colours()
    for row, (block, _) in enumerate(steps):
        for position, token in enumerate(answer.tokens):
            first = row == committed_by[position]
            here = (position + offset) // size == block
            fill: ColorType = colours(math.exp(answer.logprobs[position])) if first else MASKED if here else WAITING
            faded = position >= answer.response_length
            draw_cell(axes, row, position, token if row >= committed_by[position] else None, fill, first, faded)
    draw_frame(axes, steps, count, answer.response_length, size, offset)
    draw_titles(axes, answer.prompt_text, steps, answer.response_length, committed_by)
    draw_colour_bar(figure, axes, colours)
    return figure


def draw_cell(
    axes: "Axes", row: int, column: int, token: str | None, fill: "ColorType", first: bool, faded: bool
) -> None:
    """One position at one step; `token` is None while it is masked, `first` at the step that commits it."""
    from matplotlib.patches import Rectangle

    if token is None or first:
        inset = 0.03 if first else 0.2
        side = 1 - 2 * inset
        patch = Rectangle(
            (column + inset, row + inset), side, side, color=fill, alpha=0.45 if faded else 1, linewidth=0
        )
        axes.add_patch(patch)
    if token is not None:
        shown = visible(token)
        colour = PALE if faded and not first else "white" if first and dark(fill) and not faded else INK
        size = min(10.5, 22 / max(2, len(shown)))
        axes.text(
            column + 0.5, row + 0.52, shown, ha="center", va="center", color=colour, size=size,
            family="DejaVu Sans Mono", weight="bold" if first else "normal", parse_math=False,
        )  # fmt: skip


def draw_frame(
    axes: "Axes", steps: list[tuple[int, int]], count: int, response_length: int, block_size: int, offset: int
) -> None:
    """Axes, block boundaries, and a line where the response ends."""
    rows = len(steps)
    axes.set(xlim=(0, count), ylim=(rows, 0), aspect="equal")
    axes.set_yticks(
        [row + 0.5 for row in range(rows)], [f"block {block + 1} · {step}" for block, step in steps], size=8
    )
    starts = [0, *range(block_size - offset, count, block_size)]
    axes.set_xticks([start + 0.5 for start in starts], [str(start + 1) for start in starts], size=8)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_color(PALE)
    axes.vlines(starts[1:], 0, rows, color=PALE, linewidth=0.8)
    axes.hlines([row for row in range(1, rows) if steps[row][1] == 1], 0, count, color=WAITING, linewidth=0.8)
    if response_length < count:
        axes.vlines(response_length, 0, rows, color=INK, linewidth=1.4, linestyle=(0, (3, 2)))


def draw_titles(
    axes: "Axes", prompt_text: str, steps: list[tuple[int, int]], response_length: int, committed_by: Sequence[int]
) -> None:
    count = len(committed_by)
    speed = (
        f"{response_length} tokens in {len(steps)} denoising steps: {response_length / len(steps):.2f} tokens per step"
    )
    tail = f" (dimmed: {count - response_length} after the end)" if response_length < count else ""
    width = max(50, 3 * count)
    axes.set_title(f"{shorten(prompt_text, width)}\n{speed}{tail}", loc="left", size=11, color=INK, parse_math=False)
    axes.set_xlabel("position in the response (first of each block)", color=INK)
    axes.set_ylabel("block · denoising step", color=INK)


def draw_colour_bar(figure: "Figure", axes: "Axes", colours: "Colormap") -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=axes, fraction=0.03, pad=0.015, aspect=25)
    bar.set_label("probability when committed", color=INK)
    bar.outline.set_visible(False)


def probability_colours() -> "Colormap":
    """Pale blue for what was certain, through to dark red for what was not."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ("#a3122f", "#e8743b", "#f7c873", "#cfe3ee", "#7db7dc")
    return LinearSegmentedColormap.from_list("probability", stops)


def dark(fill: "ColorType") -> bool:
    """Whether text on this colour should be white."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(fill)
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
