"""The table of benchmarks.adapt: where a curve comes down to a value, and rows over seeds; a run of two steps."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.adapt import autoregressive, runs
from benchmarks.adapt.cases import ARMS, Scale
from benchmarks.adapt.tables import at, first_below, row


def run(seed: int, *values: float) -> dict[str, Any]:
    """Evaluated every ten steps."""
    curve = [{"step": 10 * n, "nelbo": value} for n, value in enumerate(values)]
    return {"seed": seed, "curve": curve, "packed_tokens": 2e6, "processor_s": 30.0}


def test_a_curve_reaches_a_value_in_a_line_between_evaluations() -> None:
    assert first_below(run(0, 4.0, 2.0, 1.0), 1.5) == 15.0
    assert first_below(run(0, 4.0, 2.0, 1.0), 2.0) == 10.0
    assert first_below(run(0, 4.0, 2.0, 1.0), 0.5) is None
    assert at(run(0, 4.0, 2.0, 1.0), 19) == 2.0


def test_a_row_is_the_mean_over_seeds_with_students_interval() -> None:
    found = row([run(0, 4.0, 2.0, 1.0), run(1, 4.0, 2.0, 3.0)], {0: 2.0, 1: 2.0}, tokens_per_step=100)
    assert found["at the start"] == "4.000 ± 0.000"
    assert found["at the end"] == "2.000 ± 12.706"
    assert found["tokens to scratch's end"] == "1,000 ± 0"
    assert row([run(0, 4.0, 3.0)], {0: 2.0}, 100)["tokens to scratch's end"] == "not all"


@pytest.mark.thorough
def test_every_arm_runs(tmp_path: Path) -> None:
    scale = Scale(ar_steps=2, steps=12, batch=4, evaluations=2)
    assert autoregressive.made(tmp_path, scale, 0)["tokens"] > 0
    for arm in ARMS:
        made = runs.made(tmp_path, scale, arm, 0)
        assert [point["step"] for point in made["curve"]] == [0, 6, 12]
        assert made == runs.made(tmp_path, scale, arm, 0), "what is there is not made again"
