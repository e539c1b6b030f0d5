"""A few responses in words: for a terminal, and as Markdown for loggers that take text."""

import io
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from dirl.report.terminal_text import printable, shortened, styled

Row = dict[str, Any]
"""A sample, with the fields of `dirl.report.run_samples.sample_row`."""
PARTS = (("question", "asked"), ("response", "answer"), ("ground_truth", "truth"))


def for_terminal(rows: Sequence[Row], most: int, console: Console) -> str:
    """Lines as wide as a console, with its colours.

    Args:
        most: characters of a text that are shown.
    """
    out = Console(
        file=io.StringIO(),
        width=console.width,
        force_terminal=console.is_terminal,
        no_color=console.no_color,
        highlight=False,
    )
    head = rows[0]
    out.rule(f"samples of epoch {head['epoch']}, step {head['step']}", characters="─" if console.is_terminal else "-")
    for row in rows:
        out.print(_judged(row), Text(_scores(row), "dim"), soft_wrap=True)
        for name, label in PARTS:
            if row[name] is not None:
                text = styled(shortened(row[name], most))
                out.print(Text(f"  {label:<8}", "bold"), end="")
                out.print(_hanging(text, out.width - 10), soft_wrap=True)
    file = out.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip("\n")


def _hanging(text: Text, width: int) -> Text:
    """The text in lines behind a label of ten characters."""
    lines = text.wrap(Console(width=max(width, 20)), max(width, 20))
    return Text("\n          ").join(lines)


def _judged(row: Row) -> Text:
    if row["correct"] is None:
        return Text("·")
    return Text("✓ correct", "green") if row["correct"] else Text("✗ wrong", "red")


def _scores(row: Row) -> str:
    parts = ", ".join(f"{printable(name)} {value:.3g}" for name, value in row["rewards"].items())
    cut = ", ended by the length limit" if row["finish_reason"] == "length" else ""
    reward = "no reward" if row["reward"] is None else f"reward {row['reward']:.3g} ({parts})"
    return f"{reward}, {row['response_length']} tokens{cut}, prompt {printable(row['prompt_id'])}"


def as_markdown(rows: Sequence[Row]) -> str:
    """Texts are blocks of code: nothing in them is taken for Markdown."""
    parts = []
    for row in rows:
        parts.append(f"**{_judged(row).plain}** {_code(_scores(row))}")
        for name, label in PARTS:
            if row[name] is not None:
                lines = printable(row[name]).split("\n")
                parts.append(f"{label}:\n\n" + "\n".join(f"    {line}" for line in lines))
    return "\n\n".join(parts)


def _code(text: str) -> str:
    """The text as code within a line, between fences that are longer than any in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"
