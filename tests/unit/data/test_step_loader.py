"""The step loader: epochs of whole optimizer steps, resumed in mid-epoch without a step twice or left out."""

import json
from itertools import islice

import pytest
from torch.utils.data import Dataset

from dirl.data.step_loader import StepLoader

Key = tuple[int, int]


class Keys(Dataset):
    """Item (epoch, step) is that key: what was asked for is what comes."""

    def __getitem__(self, key: Key) -> Key:
        return key


def loader(num_workers: int, steps: int = 5) -> StepLoader:
    return StepLoader(Keys(), steps, num_workers)


def through_json(state: dict[str, int]) -> dict[str, int]:
    return json.loads(json.dumps(state))


workers = pytest.mark.parametrize("num_workers", [0, 2])


@workers
def test_epochs_advance_and_each_is_whole(num_workers: int) -> None:
    data = loader(num_workers)
    assert len(data) == 5
    for epoch in range(3):
        data.sampler.set_epoch(epoch)
        assert [tuple(key) for key in data] == [(epoch, step) for step in range(5)]


@workers
def test_a_resumed_loader_goes_on_in_mid_epoch_and_later_epochs_are_whole(num_workers: int) -> None:
    data = loader(num_workers)
    data.sampler.set_epoch(4)
    assert [tuple(key) for key in islice(data, 2)] == [(4, 0), (4, 1)]
    state = through_json(data.state_dict())  # workers have fetched further steps by now
    resumed = loader(num_workers)
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(4)
    assert [tuple(key) for key in resumed] == [(4, 2), (4, 3), (4, 4)]
    resumed.sampler.set_epoch(5)
    assert [tuple(key) for key in resumed] == [(5, step) for step in range(5)]


def test_a_step_counts_as_done_while_it_is_being_trained_on() -> None:
    data = loader(0)
    assert data.state_dict() == {"done": 0}
    seen = []
    for _ in data:  # Lightning saves after the step, before it asks for the next batch
        seen.append(data.state_dict()["done"])
    assert seen == [1, 2, 3, 4, 0]


@workers
def test_the_state_at_the_end_of_an_epoch_is_the_start_of_the_next(num_workers: int) -> None:
    data = loader(num_workers)
    list(data)
    assert data.state_dict() == {"done": 0}
    resumed = loader(num_workers)
    resumed.load_state_dict(data.state_dict())
    resumed.sampler.set_epoch(1)
    assert [tuple(key) for key in resumed] == [(1, step) for step in range(5)]


def test_a_loader_that_was_resumed_counts_from_where_it_was() -> None:
    data = loader(0)
    data.load_state_dict({"done": 3})
    steps = iter(data)
    assert tuple(next(steps)) == (0, 3)
    assert data.state_dict() == {"done": 4}
    again = loader(0)
    again.load_state_dict(data.state_dict())
    assert [tuple(key) for key in again] == [(0, 4)]


def test_an_epoch_that_was_left_early_starts_anew() -> None:
    data = loader(0)
    list(islice(data, 2))
    assert [step for _, step in data] == [0, 1, 2, 3, 4]
    assert data.state_dict() == {"done": 0}


def test_a_state_that_was_loaded_and_not_yet_used_is_kept() -> None:
    data = loader(0)
    data.load_state_dict({"done": 3})
    assert data.state_dict() == {"done": 3}


def test_a_state_beyond_the_epoch_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 optimizer steps into its epoch, an epoch now has 3"):
        loader(0, steps=3).load_state_dict({"done": 3})
