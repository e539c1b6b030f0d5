"""The trainer's weights into the running engine."""

import time

import lightning as L
from dirl.callbacks.ending import ended_together

from dirl.modules import RLModule
from dirl.rollout import RolloutEngine
from dirl.rollout.engine import EnginesLostError


def push_weights(engine: RolloutEngine, trainer: L.Trainer, pl_module: RLModule) -> float:
    """The trainer's weights into the engine unless it has them; version = optimizer steps so far; returns seconds.

    Of what goes wrong only lost engines end all ranks together: an engine that is lost still lets the weights be
    gathered to the end, any other error may have come between two gathers.
    """
    started = time.perf_counter()
    if engine.policy_version != trainer.global_step:
        with ended_together(trainer, pl_module, (EnginesLostError,)):
            dtype = trainer.strategy.broadcast(engine.dtype)  # the ranks gather in one dtype, whatever each has seen
            engine.update_weights(pl_module.full_weights(dtype), trainer.global_step)
    return time.perf_counter() - started
