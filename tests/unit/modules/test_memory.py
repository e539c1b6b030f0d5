"""What the modules hold where: steps and references on the host, bf16 references, optimizer state during a rollout."""

import dataclasses
from collections.abc import Iterator

import lightning as L
import pytest
import torch
import torch.distributed as dist
from tests.tiny import TinyModel, prompt, sample_groups
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dirl.batches import StepBatch
from dirl.models.policy import scoring_plan
from dirl.modules import RLModule
from dirl.modules.optimization import offload_optimizer_state, restore_optimizer_state
from dirl.modules.reference import moved_tensors
from dirl.objectives import DiPO
from dirl.rl.steps import step_batch
from dirl.types import DecodingParams

PARAMS = DecodingParams(threshold=0.4, max_response_tokens=9)


def made_module(precision: str = "32-true", **options: object) -> RLModule:
    module = RLModule(TinyModel(), decoding=PARAMS, **options)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module.trainer = L.Trainer(accelerator="cpu", precision=precision, **silent)
    module.configure_model()
    return module


def made_step() -> StepBatch:
    groups = sample_groups(TinyModel(nudge=0.02), [prompt(6, 6), prompt(3)], 2, PARAMS)
    groups = [[dataclasses.replace(t, advantage=1.0) for t in group] for group in groups]
    return step_batch(groups, TinyModel().describe().spec, DiPO(), 9, 90)


def test_a_step_stays_on_the_host_and_its_micro_batches_are_placed_one_by_one() -> None:
    module, step = made_module(), made_step()
    assert module.transfer_batch_to_device(step, torch.device("meta"), 0) is step
    assert module.transfer_batch_to_device(torch.ones(1), torch.device("meta"), 0).is_meta
    row, plan = module.place(step.micro_batches[0], PARAMS, "trajectory")
    assert len(plan.rejected) > 0 and plan.views == int(plan.position_views.max()) + 1
    with_plan, without = (module.model(row, PARAMS, "trajectory", plan=p) for p in (plan, None))
    assert torch.equal(with_plan.logprobs, without.logprobs)
    assert torch.equal(with_plan.log_factors, without.log_factors)


def test_the_views_of_a_plan_are_those_of_the_row() -> None:
    (batch,) = made_step().micro_batches[:1]
    plan = scoring_plan(batch, TinyModel().describe().spec, PARAMS, "trajectory")
    keys = [tuple(k) for k in torch.stack(list(vars(batch.layout).values()), 1).tolist()]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    assert plan.position_views.tolist() == [number[keys[i]] for i in plan.positions.tolist()]
    assert plan.rejected_views.tolist() == [number[keys[i]] for i in plan.rejected.tolist()]
    assert plan.views == len(number)


def test_scored_steps_share_all_but_the_filled_fields() -> None:
    module, step = made_module(objective=DiPO(kl_coef=0.1)), made_step()
    (scored,) = module.score_steps([step], keep_old=True)
    assert scored.micro_batches
    for before, after in zip(step.micro_batches, scored.micro_batches, strict=True):
        changed = {name for name, value in after.tensors().items() if value is not before.tensors().get(name)}
        assert changed == {"old_logprobs", "reference_logprobs"}
        assert not changed & before.columns.keys()
        targets = after.target_ids >= 0
        assert torch.equal(after.columns["reference_logprobs"] != 0, targets)
        assert torch.equal(after.columns["old_logprobs"], after.columns["reference_logprobs"]) or not targets.all()


def test_the_reference_has_the_dtype_of_compute_and_exact_rotary_frequencies() -> None:
    module = made_module("bf16-mixed", objective=DiPO(kl_coef=0.1))
    reference = module._reference.model
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in reference.parameters())
    assert {b.dtype for b in reference.buffers()} == {torch.float32}
    assert {p.dtype for p in module.model.parameters()} == {torch.float32}
    exact = made_module(objective=DiPO(kl_coef=0.1))._reference.model
    assert {p.dtype for p in exact.parameters()} == {torch.float32}


def test_a_bf16_reference_scores_near_an_exact_one() -> None:
    step = made_step()
    found = []
    for precision in ("32-true", "bf16-mixed"):
        module = made_module(precision, objective=DiPO(kl_coef=0.1))
        found.append(module.score_steps([step], keep_old=False)[0].micro_batches[0].columns["reference_logprobs"])
    difference = (found[0] - found[1]).abs()
    assert 0 < difference[difference > 0].mean() < 0.05


def test_no_bf16_copy_of_a_weight_outlives_its_use() -> None:
    """Kept ones would fill memory until the step ends, and their gradients would wait for the end of each backward."""
    module = made_module("bf16-mixed")
    with module.trainer.precision_plugin.train_step_context():
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()


def test_a_moved_model_goes_back_to_the_tensors_it_came_from() -> None:
    model = nn.BatchNorm1d(3)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in between"), moved_tensors(model, lambda value: value + 1):
        assert model.weight.tolist() == [2, 2, 2] and model.running_mean.tolist() == [1, 1, 1]
        raise RuntimeError("in between")
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    assert model.weight.tolist() == [1, 1, 1]


def test_a_reference_on_the_host_scores_the_same() -> None:
    step = made_step()
    scores = []
    for on_host in (False, True):
        module = made_module(objective=DiPO(kl_coef=0.1), reference_on_host=on_host)
        scores.append(module.score_steps([step], keep_old=False)[0].micro_batches[0].columns["reference_logprobs"])
    assert torch.equal(*scores) and scores[0].any()


def test_a_chunk_of_no_positions_is_an_error() -> None:
    with pytest.raises(ValueError, match="head_chunk=0: use a positive number"):
        RLModule(TinyModel(), head_chunk=0)


# ------------------------------------------------------------------------------- the optimizer during a rollout


@pytest.mark.parametrize("offload", [True, False])
def test_before_and_after_a_rollout_the_optimizer_state_leaves_and_returns(
    offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = made_module(offload_optimizer=offload)
    optimizer = torch.optim.AdamW(module.model.parameters())
    for parameter in module.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    monkeypatch.setattr(module, "optimizers", lambda use_pl_optimizer: optimizer)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    wanted = [moment.clone() for moment in moments]
    module.before_rollout()
    assert {moment.untyped_storage().nbytes() == 0 for moment in moments} == {offload}
    module.before_rollout()  # a second time before the end of the first harms nothing
    for _ in range(2):
        module.after_rollout()
        assert all(map(torch.equal, moments, wanted))


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_optimizer_state_leaves_and_returns(process_group: None) -> None:
    torch.manual_seed(0)
    model = fully_shard(nn.Linear(4, 3), mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    moment = optimizer.state[model.weight]["exp_avg"]
    assert isinstance(moment, DTensor)
    wanted = moment.full_tensor().clone()
    copies = offload_optimizer_state(optimizer)
    assert moment.to_local().untyped_storage().nbytes() == 0
    restore_optimizer_state(copies)
    assert optimizer.state[model.weight]["exp_avg"] is moment
    assert torch.equal(moment.full_tensor(), wanted)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert model.weight.full_tensor().isfinite().all()
