"""The moment of the greatest memory, and the largest row with which every moment fits."""

from collections.abc import Mapping
from dataclasses import replace

from dirl.planning.memory import TILE, Moment, Parts, TrainingSetup, memory_by_moment
from dirl.rollout.memory import EngineMemory


def peak(moments: Mapping[Moment, Parts]) -> tuple[Moment, float]:
    """The moment of the greatest sum, and that sum."""
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return moment, sum(moments[moment].values())


def largest_budget(setup: TrainingSetup, engine: EngineMemory | None, reserve: float, memory: float) -> int:
    """The most tokens of a row, in multiples of `TILE`, with which every moment fits; 0 if none does."""

    def fits(tiles: int) -> bool:
        return peak(memory_by_moment(replace(setup, tokens=tiles * TILE), engine, reserve))[1] <= memory

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high * TILE < 2**30:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * TILE
