"""Pictures of a run: its learning curves, and how one answer was denoised step by step."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float]]

INK, PALE, MASKED, WAITING = "#1f2933", "#9aa5b1", "#c3cad3", "#eceff2"
LINES = ("#2368a8", "#d9722b", "#3a8f5c", "#8a4fa3")
SYMBOLS = {" ": "␣", "\n": "↵", "\t": "→", "\r": "↵"}
SPECIAL = "⊣"
LONGEST_TOKEN = 8
PLAIN = "not bold default"
"""Rich style of text that a console's highlighter must not colour."""
SMOOTHED_FROM = 60
"""A curve of at least this many points is drawn pale, with its running mean on top."""


@dataclass(frozen=True)
class Panel:
    stage: str
    title: str
    y_label: str
    curves: Mapping[str, str]
    """Metric to legend label."""
    points: Mapping[str, str]
    """The same for metrics measured now and then, drawn as points."""


PANELS = (
    Panel("SFT", "SFT loss", "nats per response token", {"loss": "training"}, {"validation_nelbo": "validation NELBO"}),
    Panel(
        "RL",
        "RL reward and held-out accuracy",
        "share of right answers",
        {"reward": "rollouts"},
        {"accuracy": "held out"},
    ),
    Panel("RL", "Speed of the rollouts", "response tokens per denoising step", {"tokens_per_step": "rollouts"}, {}),
    Panel("RL", "Entropy of the policy", "nats per token", {"entropy": "rollouts"}, {}),
)


def learning_curves(path: str | Path, sft: Rows, rl: Rows, evals: Mapping[str, float]) -> Path:
    """Draw a PNG of 1200x800 pixels, one panel for each group of metrics that the rows hold.

    sft: rows with `step` (optimizer step) and any of `loss`, `validation_nelbo`.
    rl: rows with `step` and any of `reward` (rollouts, their sampled accuracy where a reward is 0 or 1),
        `accuracy` (held-out, 0..1), `tokens_per_step`, `entropy`.
    evals: label to held-out accuracy (0..1), e.g. {"before RL": 0.46, "after RL": 0.76}; lines across the
        reward panel.
    A row need not hold every metric, and one that is NaN is not drawn; a panel without values is left out.
    """
    return save(curves_figure(sft, rl, evals), path, dpi=100)


def curves_figure(sft: Rows, rl: Rows, evals: Mapping[str, float]) -> "Figure":
    stages = {"SFT": sft, "RL": rl}
    panels = [p for p in PANELS if any(series(stages[p.stage], key)[0] for key in (*p.curves, *p.points))]
    if not panels:
        wanted = sorted({key for panel in PANELS for key in (*panel.curves, *panel.points)})
        raise ValueError(f"no learning curves to draw: no row of sft or rl holds `step` and one of {wanted}")
    columns = min(2, len(panels))
    figure = new_figure(12, 8)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
    for axes, panel in itertools.zip_longest(grid, panels):
        if panel is None:
            axes.set_axis_off()
        else:
            draw_panel(axes, panel, stages[panel.stage], evals if "reward" in panel.curves else {})
    return figure


def draw_panel(axes: "Axes", panel: Panel, rows: Rows, levels: Mapping[str, float]) -> None:
    colours = iter(itertools.cycle(LINES))
    for key, label in panel.curves.items():
        draw_curve(axes, *series(rows, key), label=label, colour=next(colours))
    for key, label in panel.points.items():
        steps, values = series(rows, key)
        if steps:
            axes.plot(steps, values, "o-", color=next(colours), markersize=5, linewidth=1, label=label)
    for (label, value), style in zip(levels.items(), itertools.cycle(("--", "-.", ":")), strict=False):
        axes.axhline(value, color=INK, linestyle=style, linewidth=1.3, label=f"{label}: {100 * value:.1f} %")
    axes.set_title(panel.title, fontsize=13, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel(f"{panel.stage} step", color=INK)
    axes.set_ylabel(panel.y_label, color=INK)
    axes.grid(alpha=0.25)
    if levels:
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1]))
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_lines()) > 1:
        place = "lower right" if levels else "best"
        axes.legend(loc=place, fontsize=10, facecolor="white", edgecolor="none", framealpha=0.85)


def draw_curve(axes: "Axes", steps: list[float], values: list[float], label: str, colour: str) -> None:
    if len(steps) < SMOOTHED_FROM:
        if steps:
            axes.plot(steps, values, color=colour, linewidth=1.8, label=label)
        return
    window = max(5, len(steps) // 30 | 1)
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, running_mean(values, window), color=colour, linewidth=1.8, label=f"{label}, mean of {window}")


def series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, where it was measured, in the order of the steps."""
    found = sorted((row["step"], row[key]) for row in rows if "step" in row and key in row)
    found = [(step, value) for step, value in found if not math.isnan(value)]
    return [step for step, _ in found], [value for _, value in found]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the values at most window // 2 places away, of fewer at both ends."""
    reach = window // 2
    parts = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def denoising_picture(
    path: str | Path,
    prompt_text: str,
    tokens: Sequence[str],
    step_map: Sequence[int],
    logprobs: Sequence[float],
    response_length: int,
    block_size: int,
    first_block_offset: int,
) -> Path:
    """Draw a PNG: a row for each denoising step, a column for each response position.

    tokens, step_map, logprobs (nats): every position of every decoded block, as in a `Trajectory`; positions
    from `response_length` on, the tail after the stop token, are dimmed. first_block_offset: number of prompt
    tokens in the first block, i.e. prompt length modulo block size.
    """
    figure = denoising_figure(
        prompt_text, tokens, step_map, logprobs, response_length, block_size, first_block_offset
    )  # fmt: skip
    return save(figure, path, dpi=130)


def denoising_figure(
    prompt_text: str,
    tokens: Sequence[str],
    step_map: Sequence[int],
    logprobs: Sequence[float],
    response_length: int,
    block_size: int,
    first_block_offset: int,
) -> "Figure":
    steps, committed_by = denoising_steps(step_map, block_size, first_block_offset)
    count = len(tokens)
    assert len(step_map) == len(logprobs) == count, "tokens, step_map and logprobs cover the same positions"
    figure = new_figure(max(7.0, 2.6 + 0.33 * count), 1.9 + 0.3 * len(steps))
    axes = figure.subplots()
    colours = probability_colours()
    for row, (block, _) in enumerate(steps):
        for position, token in enumerate(tokens):
            first = row == committed_by[position]
            here = (position + first_block_offset) // block_size == block
            fill = colours(math.exp(logprobs[position])) if first else MASKED if here else WAITING
            faded = position >= response_length
            draw_cell(axes, row, position, token if row >= committed_by[position] else None, fill, first, faded)
    draw_frame(axes, steps, count, response_length, block_size, first_block_offset)
    draw_titles(axes, prompt_text, steps, response_length, committed_by)
    draw_colour_bar(figure, axes, colours)
    return figure


def denoising_steps(
    step_map: Sequence[int], block_size: int, first_block_offset: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """The (block, step) of each forward in order, and for each position the index of the one that committed it.

    Blocks are counted from 0, steps from 1 within a block.
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


def draw_cell(axes: "Axes", row: int, column: int, token: str | None, fill: object, first: bool, faded: bool) -> None:
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


def denoising_text(
    prompt_text: str,
    tokens: Sequence[str],
    step_map: Sequence[int],
    logprobs: Sequence[float],
    response_length: int,
    block_size: int,
    first_block_offset: int,
    markup: bool = True,
) -> str:
    """The same for a terminal: a line for each denoising step, masked positions as dots, blocks apart.

    With `markup`, in rich's: new tokens green (p >= 0.9), yellow (p >= 0.5) or red, the tail dim; print it with
    rich. Without, plain characters.
    """
    steps, committed_by = denoising_steps(step_map, block_size, first_block_offset)
    digits = len(str(steps[-1][0] + 1))
    starts = set(range(block_size - first_block_offset, len(tokens), block_size))
    lines = [styled(shorten(prompt_text, 100), "bold default", markup)]
    for row, (block, step) in enumerate(steps):
        cells = []
        for position, token in enumerate(tokens):
            style = cell_style(row - committed_by[position], logprobs[position], position >= response_length)
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


def visible(token: str) -> str:
    """One short run of printable characters for any token; special tokens like <|im_end|> become one sign."""
    if token.startswith("<") and token.endswith(">") and len(token) > 2:
        return SPECIAL
    return shorten("".join(SYMBOLS.get(character, character) for character in token), LONGEST_TOKEN)


def shorten(text: str, length: int) -> str:
    text = text.replace("\n", SYMBOLS["\n"])
    return text if len(text) <= length else text[: length - 1] + "…"


def dark(fill: object) -> bool:
    """Whether text on this colour should be white."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(fill)
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def new_figure(width: float, height: float) -> "Figure":
    """A figure in inches on the Agg canvas; pyplot, and whatever backend the user has chosen, stay untouched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: str | Path, dpi: int) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, format="png")
    return path
