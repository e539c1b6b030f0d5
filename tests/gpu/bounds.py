"""What a check measures, and how much of it must hold in bf16 and in fp32."""

from dataclasses import dataclass

import torch

Numbers = dict[str, float]


class Broken(AssertionError):
    """A check that does not hold, with what it measured."""

    def __init__(self, numbers: Numbers, conditions: list[str]) -> None:
        super().__init__(f"{', '.join(conditions)}: {numbers}")
        self.numbers, self.conditions = numbers, conditions


@dataclass(frozen=True)
class Bounds:
    equal_tokens: float
    """At least. A flip at 3 of 100 tokens leaves 0.65 of 32 tokens before the first one, at 10 of 100 it leaves 0.3."""
    margin: float
    """By which equal tokens exceed those by chance."""
    mismatch: float
    """Mean |difference of log-probs|, at most: four times what bf16 was seen to cost."""


def bounds(dtype: torch.dtype) -> Bounds:
    return Bounds(1.0, 0.1, 1e-4) if dtype == torch.float32 else Bounds(0.3, 0.2, 0.15)


def hold(numbers: Numbers, **conditions: bool) -> Numbers:
    """The numbers, if every condition is met."""
    broken = [name for name, met in conditions.items() if not met]
    if broken:
        raise Broken(numbers, broken)
    return numbers
