"""The optimizer's state goes to the host and comes back as it was; the tensors stay the same objects."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dirl.modules.optimization import (
    OptimizerConfig,
    build_optimizer,
    offload_optimizer_state,
    restore_optimizer_state,
)


def stepped(model: nn.Module, steps: int = 1) -> torch.optim.AdamW:
    optimizer, _ = build_optimizer(list(model.parameters()), OptimizerConfig(lr=0.1), 10)
    for _ in range(steps):
        train(model, optimizer)
    return optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(3, 4)).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


def test_state_comes_back_as_it_was_and_holds_nothing_meanwhile() -> None:
    torch.manual_seed(0)
    optimizer = stepped(nn.Linear(4, 5))
    before, pointers = [m.clone() for m in moments(optimizer)], [id(m) for m in moments(optimizer)]
    copies = offload_optimizer_state(optimizer)
    assert len(copies) == 4
    assert all(m.untyped_storage().nbytes() == 0 for m in moments(optimizer))
    restore_optimizer_state(copies)
    assert [id(m) for m in moments(optimizer)] == pointers
    for found, wanted in zip(moments(optimizer), before, strict=True):
        assert wanted.any() and torch.equal(found, wanted)


def test_training_goes_on_as_if_nothing_had_moved() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 5)
    twin = copy.deepcopy(model)
    stepped(twin, 3)
    optimizer = stepped(model)
    for _ in range(2):
        restore_optimizer_state(offload_optimizer_state(optimizer))
        train(model, optimizer)
    assert torch.equal(model.weight, twin.weight)


def test_an_optimizer_that_has_made_no_step_has_nothing_to_move() -> None:
    optimizer, _ = build_optimizer(list(nn.Linear(2, 2).parameters()), OptimizerConfig(), 10)
    assert offload_optimizer_state(optimizer) == []


def test_tensors_that_share_memory_are_moved_once() -> None:
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters)
    both = torch.arange(6.0)
    for parameter, part in zip(parameters, both.split(3), strict=True):
        optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": part}
    copies = offload_optimizer_state(optimizer)
    assert [each.copy.numel() for each in copies] == [24]
    restore_optimizer_state(copies)
    assert optimizer.state[parameters[1]]["exp_avg"].tolist() == pytest.approx([3, 4, 5])


def test_state_cannot_leave_twice() -> None:
    optimizer = stepped(nn.Linear(4, 5))
    offload_optimizer_state(optimizer)
    with pytest.raises(AssertionError, match="on the host already"):
        offload_optimizer_state(optimizer)
