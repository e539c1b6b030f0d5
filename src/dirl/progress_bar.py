"""Progress: bars on a terminal; elsewhere (a log file) a line each so many seconds."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain

if TYPE_CHECKING:
    import lightning as L

LINE_S = 10.0
"""Seconds between two lines."""


class Lines(plain):
    """A bar that writes a line each so many seconds, and one at its end if it took so long."""

    disable: bool  # tqdm's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"mininterval": LINE_S, "maxinterval": LINE_S, "leave": True, "delay": LINE_S, "ncols": 100}
        super().__init__(*args, **kwargs)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def write(text: str) -> None:
            if text.strip():
                file.write(text.strip() + "\n")
                file.flush()

        return write

    def moveto(self, n: int) -> None:
        """A line stays where it is, so nothing is moved."""

    def close(self) -> None:
        if self.disable:
            return
        if time.time() - self.start_t >= LINE_S:  # else so short that nobody has waited
            self.display()
        self.disable = True
        self._decr_instances(self)


def on_terminal() -> bool:
    return sys.stderr.isatty()


def say_above_bars() -> None:
    """Let log lines and warnings lift the bars of a terminal out of their way; they would go on in a bar's line."""
    if not on_terminal():
        return
    named = [logging.getLogger(name) for name in ("", "lightning", "lightning.pytorch", "lightning.fabric")]
    for handler in {logging.lastResort, *(handler for logger in named for handler in logger.handlers)}:
        if isinstance(handler, logging.StreamHandler):
            handler.emit = _above(handler.emit)  # type: ignore[method-assign]
    warnings.showwarning = _above(warnings.showwarning)


def _above(say: Callable[..., None]) -> Callable[..., None]:
    """What says something on the terminal, with the bars cleared before and drawn again below."""
    if getattr(say, "above_bars", False):
        return say

    def above(*args: Any, **kwargs: Any) -> None:
        with plain.external_write_mode(sys.stderr):
            say(*args, **kwargs)

    above.above_bars = True
    return above


def end_bars() -> None:
    """Close all bars, those that stay with their last line, before the last word of a command that was ended."""
    for shown in sorted(getattr(plain, "_instances", ()), key=lambda each: each.pos):
        shown.close()


def bar(*args: Any, shown: bool = True, **kwargs: Any) -> plain:
    """A tqdm bar for this place: drawn, in lines, or silent."""
    kind = tqdm if on_terminal() else Lines
    return kind(*args, disable=not shown, **kwargs)


def quiet_libraries() -> None:
    """No bars of transformers and datasets, loaded or not: a command that needs neither does not wait for them."""
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    else:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
    else:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def bars_shown(trainer: "L.Trainer") -> bool:
    """Whether this process of a run shows bars: the first does, unless `trainer.enable_progress_bar` is false."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def expect(shown: plain, more: int) -> None:
    """Let a bar's total grow, by rounds of work that come one after the other."""
    shown.total = (shown.total or 0) + more
    if not isinstance(shown, Lines):
        shown.refresh()
