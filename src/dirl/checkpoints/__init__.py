"""Checkpoints: where in a run one was written, files that are whole or not there, what may be resumed with what."""

from dirl.checkpoints.position import Position
from dirl.checkpoints.resumable import Resumable

__all__ = ["Position", "Resumable"]
