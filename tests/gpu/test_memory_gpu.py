"""On a GPU: the head in bf16, recomputed and compiled layers, state on the host, no needless waits."""

import dataclasses

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from tests.tiny import flat_gradient, prompt, sample_groups

from dirl.attention import build_mask
from dirl.batches import PackedBatch, StepBatch
from dirl.models import BlockDiffusionLM, NewModel, policy
from dirl.models.head import selection_factors, target_scores
from dirl.modules import RLModule
from dirl.modules.layers import Checkpointing, compile_layers, recompute_layers
from dirl.modules.optimization import (
    OptimizerConfig,
    build_optimizer,
    offload_optimizer_state,
    restore_optimizer_state,
)
from dirl.objectives import DiPO
from dirl.rl.steps import step_batch
from dirl.types import DecodingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SOURCE = NewModel(hidden_size=128, num_hidden_layers=4, head_dim=32, initializer_range=0.15, alphabet="01234+=")
PARAMS = DecodingParams(threshold=0.4, max_response_tokens=61)


@pytest.fixture(scope="module")
def step() -> StepBatch:
    groups = sample_groups(SOURCE, [prompt(6, 6), prompt(3)], 4, PARAMS)
    groups = [[dataclasses.replace(t, advantage=1.0) for t in group] for group in groups]
    return step_batch(groups, SOURCE.describe().spec, DiPO(), PARAMS.max_response_tokens, 400)


def model(mode: Checkpointing = "none", compiled: bool = False) -> BlockDiffusionLM:
    description = SOURCE.describe()
    backbone = SOURCE.build(description.config).train()
    recompute_layers(backbone.model.layers, mode)
    if compiled:
        compile_layers(backbone.model.layers)
    return BlockDiffusionLM(backbone, description.spec, "flex").cuda()


def gradient(lm: BlockDiffusionLM, rows: list[PackedBatch]) -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16):
        return sum(flat_gradient(lm(row.to("cuda"), PARAMS).logprobs.mean(), lm.parameters()) for row in rows)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])  # single device and DDP, FSDP2
def test_the_head_rounds_operands_and_nothing_else(weight_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5000, 256, device="cuda").bfloat16().to(weight_dtype).requires_grad_()
    hidden = (torch.randn(300, 256, device="cuda") / 4).bfloat16().to(weight_dtype).requires_grad_()
    targets = torch.randint(0, 4999, (300,), device="cuda")
    bound, inclusive = torch.full((300,), 1e-3, device="cuda"), torch.ones(300, device="cuda", dtype=torch.bool)
    exact = [x.detach().double().requires_grad_() for x in (weight, hidden)]
    results = []
    for chunk, (w, h) in ((64, (weight, hidden)), (300, exact)):
        with torch.autocast("cuda", torch.bfloat16, enabled=w is weight):
            found = target_scores(w, h, targets, ((4999, 5000),), PARAMS, chunk)
            factors = selection_factors(w, h, bound.to(found[0].dtype), inclusive, ((4999, 5000),), PARAMS, chunk)
        gradients = torch.autograd.grad(found[0].sum() + factors.sum(), (w, h))
        results.append((*found[:2], factors, *gradients))
    assert all(x.dtype == torch.float32 for x in results[0][:3])
    for ours, wanted in zip(results[0][:3], results[1][:3], strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=2e-3)  # a confidence at the bound may flip
        assert (ours - wanted).abs().median() < 1e-5
    for ours, wanted in zip(results[0][3:], results[1][3:], strict=True):
        assert F.cosine_similarity(ours.double().flatten(), wanted.flatten(), dim=0) > 0.9999


def test_the_head_holds_one_chunk_of_logits_and_one_gradient() -> None:
    rows, vocabulary, width, chunk = 4096, 32_000, 256, 256
    weight = torch.randn(vocabulary, width, device="cuda", requires_grad=True)
    hidden = torch.randn(rows, width, device="cuda", requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.long, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        target_scores(weight, hidden, targets, ((1, 2),), PARAMS, chunk)[0].sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    logits, head = 10 * chunk * vocabulary, (2 + 4) * vocabulary * width  # a bf16 copy and the gradient
    assert peak < logits + head + 64 * 2**20 + 16 * rows * width


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_recomputed_and_compiled_layers_have_the_same_gradient(
    mode: Checkpointing, compiled: bool, step: StepBatch
) -> None:
    assert len({len(row) for row in step.micro_batches}) > 1
    wanted, found = gradient(model(), step.micro_batches), gradient(model(mode, compiled), step.micro_batches)
    assert F.cosine_similarity(found, wanted, dim=0) > (0.99 if compiled else 0.9999)


def test_optimizer_state_leaves_the_gpu_and_training_goes_on() -> None:
    linear = torch.nn.Linear(2048, 2048, device="cuda")
    optimizer, _ = build_optimizer(list(linear.parameters()), OptimizerConfig(), 10)
    assert optimizer.defaults["fused"]

    def train() -> None:
        linear(torch.ones(2, 2048, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    wanted, held = [m.cpu() for m in moments], torch.cuda.memory_allocated()
    copies = offload_optimizer_state(optimizer)
    assert all(each.copy.is_pinned() for each in copies)
    assert torch.cuda.memory_allocated() <= held - 2 * 4 * 2048 * 2048
    restore_optimizer_state(copies)
    assert all(torch.equal(m.cpu(), w) for m, w in zip(moments, wanted, strict=True))
    train()


def test_a_micro_batch_waits_for_nothing(step: StepBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the host's batch to the gradient; the mask, which is attention's business, is made beforehand."""
    module = RLModule(SOURCE, decoding=PARAMS, attention="flex")
    module.trainer = L.Trainer(accelerator="cuda", devices=1, logger=False, enable_checkpointing=False)
    module.configure_model()
    module.cuda()
    batch = step.micro_batches[0]
    mask = build_mask(batch.to("cuda").layout, "flex")
    monkeypatch.setattr(policy, "build_mask", lambda *_: mask)
    module.loss(batch, 100.0)[0].backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.loss(batch, 100.0)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_reference_on_the_host_takes_no_memory_but_while_it_scores(step: StepBatch) -> None:
    held = []
    for on_host in (False, True):
        module = RLModule(SOURCE, PARAMS, objective=DiPO(kl_coef=0.1), reference_on_host=on_host)
        module.trainer = L.Trainer(accelerator="cuda", devices=1, logger=False, enable_checkpointing=False)
        module.configure_model()
        module.cuda()
        (scored,) = module.score_steps([step], keep_old=False)
        held.append(
            (
                scored.micro_batches[0].columns["reference_logprobs"],
                {p.device.type for p in module._reference.model.parameters()},
            )
        )
    assert (held[0][1], held[1][1]) == ({"cuda"}, {"cpu"})
    assert torch.equal(held[0][0].nan_to_num(), held[1][0].nan_to_num())
