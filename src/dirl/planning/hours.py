"""Hours of a run, from its FLOPs, a rate that was measured or is assumed, and the steps that its config asks for."""

import csv
from pathlib import Path
from typing import NamedTuple

from dirl.planning.flops import Flops
from dirl.planning.peaks import PEAKS

ROLLOUT = "rollout"
"""What a plan calls the FLOPs of decoding."""
MEASURED = "throughput/mfu"


class Rates(NamedTuple):
    """How fast one device is.

    Args:
        peak: bf16 TFLOP/s that utilisation is a share of.
        utilisation: of forward and backward passes, without what is computed again, as `Throughput` logs it.
        rollout_tokens: response tokens a second that an engine on one device makes; None: not known.
    """

    peak: float
    utilisation: float
    rollout_tokens: float | None = None


class Hours(NamedTuple):
    """Seconds of a step, which is a rollout with its updates, or an optimizer step; and hours of all steps."""

    training_s: float
    rollout_s: float | None
    """None: there is no rollout, or no rate for it."""
    steps: int | None
    """None: the config names no end that a plan can count."""

    @property
    def step_s(self) -> float:
        return self.training_s + (self.rollout_s or 0.0)

    @property
    def total(self) -> float | None:
        return None if self.steps is None else self.steps * self.step_s / 3600


def hours(flops: dict[str, Flops], devices: int, rates: Rates, response_tokens: float, steps: int | None) -> Hours:
    """The hours of a plan's FLOPs by purpose; recomputation is in the utilisation, and so left out.

    Args:
        response_tokens: that a step's rollout makes on all devices.
    """
    useful = sum(value.total for name, value in flops.items() if name not in (ROLLOUT, "recomputed"))
    training = useful / (devices * rates.peak * 1e12 * rates.utilisation)
    decodes = ROLLOUT in flops and rates.rollout_tokens is not None
    rollout = response_tokens / (devices * rates.rollout_tokens) if decodes and rates.rollout_tokens else None
    return Hours(training, rollout, steps)


def read_rates(utilisation: str | None, device: str, rollout_tokens: float | None) -> Rates | None:
    """The rates that the options of `plan` give; None: no utilisation is given.

    Args:
        utilisation: a share, or the metrics.csv of a run, which has measured it.
    """
    if rollout_tokens is not None and rollout_tokens <= 0:
        raise ValueError(f"rollout_tokens_per_s={rollout_tokens:g}: use a positive number, of one device")
    if utilisation is None:
        return None
    if device not in PEAKS:
        raise ValueError(f"device={device!r}: use one of {', '.join(PEAKS)}")
    share = _measured(Path(utilisation)) if utilisation.endswith(".csv") else _number(utilisation)
    if not 0 < share <= 1:
        raise ValueError(f"utilisation={utilisation}: use a share of the peak above 0 and at most 1, e.g. 0.4")
    return Rates(PEAKS[device], share, rollout_tokens)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"utilisation={text!r}: use a number, e.g. 0.4, or a run's metrics.csv") from None


def _measured(path: Path) -> float:
    """The median of a run, so that the first step, which compiles, does not count."""
    if not path.is_file():
        raise ValueError(f"utilisation={path}: no such file; name the metrics.csv of a run, or a number, e.g. 0.4")
    with path.open(encoding="utf-8") as file:
        found = sorted(float(row[MEASURED]) for row in csv.DictReader(file) if row.get(MEASURED))
    if not found:
        raise ValueError(
            f"utilisation={path}: it has no {MEASURED}, which is logged where the peak is known: give the run "
            "--throughput.peak_tflops, or give a number here"
        )
    return found[len(found) // 2]
