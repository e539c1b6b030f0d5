"""Some cases of `make torture`: runs that are killed again and again end as the one that was not."""

from pathlib import Path

import pytest
from tests.torture.cases import torture
from tests.torture.scenarios import SCENARIOS
from tests.torture.table import row


@pytest.mark.slow
def test_killed_runs_of_sft_and_rl_end_with_every_bit_of_the_run_that_was_not_killed(tmp_path: Path) -> None:
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in ("sft", "rl")]
    results = torture(scenarios, 2, seed=0, folder=tmp_path, jobs=2, done=lambda number, result: None)
    assert [row(number, result) for number, result in enumerate(results) if result.wrong] == []
    assert all(result.kills and result.resumes + result.anew for result in results)
