"""An answer while it is denoised: in place on a terminal, elsewhere text as its blocks are finished."""

import sys
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from dirl.cli.chat.conversation import Answer, Words
from dirl.report.terminal_text import printable, styled

MASK = "▒"
HALF = "\ufffd"
"""What a tokenizer writes for bytes that are no character yet."""


class PlainDisplay:
    """Texts of finished blocks, one behind the other; notes go to stderr, so that answers can be piped on."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.shown = 0
        """Characters of the answer that are written already."""

    def begin(self) -> None:
        self.shown = 0

    def show(self, words: Words) -> None:
        self._write(words.done.rstrip(HALF))

    def end(self, answer: Answer) -> None:
        self._write(answer.text)
        self.out.write("\n")
        self.out.flush()
        self.note(answer.note)

    def abandon(self) -> None:
        if self.shown:
            self.out.write("\n")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        self.out.write(text[self.shown :])
        self.out.flush()
        self.shown = max(self.shown, len(text))


class LiveDisplay:
    """Lines of an answer are printed when they are whole; the last one lives: its masks are filled where they stand."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None
        self.printed = 0
        """Characters of the answer that stand above the living line."""

    def begin(self) -> None:
        self.printed = 0
        self.live = Live(styled(MASK, "dim"), console=self.console, transient=True, auto_refresh=False)
        self.live.start(refresh=True)

    def show(self, words: Words) -> None:
        assert self.live is not None, "`begin` comes first"
        whole = words.done.rfind("\n") + 1
        if whole > self.printed:
            self.console.print(styled(words.done[self.printed : whole - 1]))
            self.printed = whole
        line = styled(words.done[self.printed :].rstrip(HALF))
        line.append(printable(words.text[max(len(words.done), self.printed) :]), "bold")
        for piece in words.unfinished:
            line.append(MASK * piece if isinstance(piece, int) else printable(piece), "dim" * isinstance(piece, int))
        self.live.update(_Tail(line), refresh=True)

    def end(self, answer: Answer) -> None:
        self.abandon()
        self.console.print(styled(answer.text[self.printed :]))
        self.note(answer.note)

    def abandon(self) -> None:
        """Leave what is printed, take away what lives."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def note(self, text: str) -> None:
        self.console.print(styled(text, "dim"))


class _Tail:
    """The last lines of a text, as many as the terminal has room for: more could not be drawn anew."""

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self.text.wrap(console, options.max_width)
        yield Text("\n").join(lines[-max(1, console.height - 2) :])


Display = PlainDisplay | LiveDisplay


def display_for_here() -> Display:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return LiveDisplay(Console(highlight=False))
    return PlainDisplay()
