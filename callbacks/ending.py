"""What ends one process in a rollout or an evaluation ends all of them, which then write a checkpoint together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch.distributed

from dirl.errors import OtherProcessError, saved, together
from dirl.modules.base import BlockDiffusionModule
from dirl.rollout.engine import EnginesLostError
from dirl.stopping import Stopped

LOST, STOPPED = 2, 100
"""Severity of what ends a rollout: 1 an error, 2 engines lost, 100 and more a signal."""


@contextmanager
def ended_together(
    trainer: L.Trainer, pl_module: BlockDiffusionModule, kinds: tuple[type[BaseException], ...] = (Exception, Stopped)
) -> Iterator[None]:
    """All ranks raise at the end of this what any of them has raised in it; to be entered by all of them.

    If the engines of any rank are lost, all ranks write `engines_lost.ckpt`; of other errors, and of signals, see
    `dirl.callbacks.Guard`.

    Args:
        kinds: of errors. Where ranks call collectives in here, only those after which a rank has still called all of
            them: the others wait for it there, and not at the end.
    """
    own: BaseException | None = None
    try:
        yield
    except kinds as error:
        own = error
    worst = pl_module.largest_over_ranks(_severity(own))
    if worst == 0:
        return
    if worst >= STOPPED:
        raise together(Stopped(worst - STOPPED)) from own
    texts = _everyones(None if own is None else str(own) or type(own).__name__, trainer.world_size)
    if worst == LOST:
        raise _engines_lost(own, texts, trainer, pl_module) from own
    if own is not None:
        raise together(own)
    rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
    raise together(OtherProcessError(f"process {rank} of {trainer.world_size} failed: {text}"))


def _engines_lost(
    own: BaseException | None, texts: list[str | None], trainer: L.Trainer, pl_module: BlockDiffusionModule
) -> EnginesLostError:
    pl_module.after_rollout()
    path = Path(trainer.default_root_dir) / "engines_lost.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    reason = str(own)
    if own is None:
        rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
        reason = f"process {rank} of {len(texts)} has lost its engines: {text}"
    lost = EnginesLostError(f"{reason}\nNothing is lost: go on with --ckpt_path {path}")
    return together(saved(lost, path))


def _severity(error: BaseException | None) -> int:
    if isinstance(error, Stopped):
        return STOPPED + error.signum
    if isinstance(error, EnginesLostError):
        return LOST
    return int(error is not None)


def _everyones(text: str | None, ranks: int) -> list[str | None]:
    """What each rank has to say; a collective."""
    texts = [text] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(texts, text)
    return texts
