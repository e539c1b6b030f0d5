"""The seed of a run is that of all that names none."""

import pytest
from dirl.callbacks import Rollout

from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule
from dirl.models import NewModel
from dirl.rewards import ExactAnswer
from dirl.rollout import TorchEngine
from dirl.seeds import run_seed

MAKERS = {
    "rl": lambda **options: RLDataModule("x", **options),
    "sft": lambda **options: SFTDataModule("x", **options),
    "rollout": lambda **options: Rollout([ExactAnswer()], TorchEngine(), **options),
    "model": lambda **options: NewModel(**options),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_names_no_seed_has_that_of_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert MAKERS[name]().seed == 7
    assert MAKERS[name](seed=3).seed == 3
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert MAKERS[name]().seed == 0
    with pytest.raises(ValueError, match="seed=-1: use 0 or more"):
        MAKERS[name](seed=-1)


def test_zero_is_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert run_seed(0) == 0
