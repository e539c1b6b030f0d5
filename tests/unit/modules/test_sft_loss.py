"""The SFT loss: one conversation worked by hand from its tokens to the number, and eq. 3 on naive forwards."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.reference import distribution, hf_logits, naive_block_logits, naive_sft_loss
from tests.scripted_noise import ScriptedNoise
from tests.tiny import TinyModel, flat_gradient, prompt
from torch import Tensor, nn

from dirl.batches import PackedBatch
from dirl.diffusion.noise import NoiseConfig, noise
from dirl.models import BlockDiffusionLM
from dirl.modules import SFTModule
from dirl.packing.pieces import Encoded, alone, conversation, whole_blocks
from dirl.packing.rows import pack
from dirl.types import ModelSpec

M, E = 6, 7
SPEC = ModelSpec(block_size=2, mask_token_id=M, stop_token_ids=(E,), pad_token_id=0, vocab_size=8)


class LogitsOfPlaces(nn.Module):
    """A decoder that gives one token the probability 1/2 at each packed place and shares the rest among the others.

    The mask token gets a large logit, which must not count.
    """

    def __init__(self, favourites: list[int]) -> None:
        super().__init__()
        self.favourites = torch.tensor(favourites)

    def forward(self, input_ids: Tensor, **inputs: Any) -> SimpleNamespace:
        legal = SPEC.vocab_size - 1
        logits = torch.full((*input_ids.shape, SPEC.vocab_size), math.log(1 / 2 / (legal - 1)))
        logits.scatter_(-1, self.favourites[None, :, None], math.log(1 / 2))
        logits[..., M] = 9.0
        return SimpleNamespace(last_hidden_state=logits)


class SureOfPlaces(nn.Module):
    """A backbone whose hidden states are the logits."""

    def __init__(self, favourites: list[int]) -> None:
        super().__init__()
        self.model = LogitsOfPlaces(favourites)
        self.lm_head = nn.Linear(SPEC.vocab_size, SPEC.vocab_size, bias=False)
        nn.init.eye_(self.lm_head.weight)


def loss_of(model: BlockDiffusionLM, batch: PackedBatch, divisor: float) -> Tensor:
    module = SFTModule(TinyModel())
    module.model = model
    return module.loss(batch, divisor)


def test_a_conversation_worked_by_hand() -> None:
    """Prompt 1 2 3, answer 4 5 and the end token; blocks (1 2) (3 4) (5 E), of which two are noised.

    Block 1: t = 1/2, masks its 4, which the model holds for likely (1/2). Block 2: t = 1/4, masks 5 and the end
    token, of which it expects the first and not the second (1/12: half of its belief is shared by 6 others).
    """
    encoded = Encoded([1, 2, 3, 4, 5, E], [False] * 3 + [True] * 3)
    segment, count = conversation(encoded, SPEC, NoiseConfig(), ScriptedNoise([0.5, 0.25], [".#", "##"]))
    (batch,) = pack([alone(segment)], 100)
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 3, M, M, M]
    model = BlockDiffusionLM(SureOfPlaces([0, 0, 0, 0, 0, 4, 5, 0]), SPEC)
    wanted = (2 * math.log(2) + 4 * math.log(2) + 4 * math.log(12)) / 3
    assert count == 3
    assert loss_of(model, batch, count).item() == pytest.approx(wanted, rel=1e-6)


def test_two_views_count_half_each_and_the_fill_of_the_last_block_counts_as_response() -> None:
    """Answer 4 E, filled up to (3 4) (E E). View 1 masks 4 alone, view 2 masks 4 and the first end token; t = 1/2."""
    encoded = Encoded([3, 4, E], [False, True, True])
    rng = ScriptedNoise([0.5] * 4, [".#", "..", ".#", "#."])
    segment, count = conversation(encoded, SPEC, NoiseConfig(views_per_block=2), rng)
    (batch,) = pack([alone(segment)], 100)
    assert batch.input_ids.tolist() == [3, 4, 3, M, 3, M, M, E]
    model = BlockDiffusionLM(SureOfPlaces([0, 0, 0, 4, 0, 4, 0, 0]), SPEC)
    assert count == 3
    wanted = (math.log(2) + math.log(2) + math.log(12)) / 3  # weights 1 / (1/2 * 2 views)
    assert loss_of(model, batch, count).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("attention", ["dense", "segments"])
@pytest.mark.parametrize("views", [1, 2])
def test_loss_and_gradient_are_eq_3_of_naive_forwards(views: int, attention: str) -> None:
    """Three conversations in one row, each with noise of its own; the mean over views, per response token of all."""
    source = TinyModel()
    backbone, spec = source.make()
    exact = source.make()[0].double()
    config = NoiseConfig(views_per_block=views, t_min=0.2)
    segments, sums, counts = [], [], []
    for seed, (asked, answered) in enumerate([(5, 7), (8, 8), (2, 6)]):
        loss_mask = [False] * asked + [True] * answered
        encoded = Encoded(list(prompt(asked + answered, seed)), loss_mask)
        segment, count = conversation(encoded, spec, config, np.random.default_rng(seed))
        segments.append(segment)
        sums.append(count * naive_loss(exact, spec, encoded, config, np.random.default_rng(seed)))
        counts.append(count)
    (batch,) = pack(map(alone, segments), 1000)
    wanted = sum(sums) / sum(counts)
    found = loss_of(BlockDiffusionLM(backbone, spec, attention), batch, sum(counts))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)  # fp32 against float64
    gradient, wanted_gradient = flat_gradient(found, backbone.parameters()), flat_gradient(wanted, exact.parameters())
    assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) < 1e-5


def naive_loss(
    backbone: nn.Module, spec: ModelSpec, encoded: Encoded, config: NoiseConfig, rng: np.random.Generator
) -> Tensor:
    """Eq. 3 of one conversation, the mean over its views: each view of each block is a forward of its own."""
    size = spec.block_size
    ids, trained = whole_blocks(encoded, size, spec.stop_token_ids[0])
    blocks = np.flatnonzero(trained.any(1))
    masked, weights = noise(trained[blocks], config, rng)
    response = set(np.flatnonzero(trained.ravel()).tolist())
    losses = []
    for view in range(config.views_per_block):
        logprobs = torch.zeros(ids.size, dtype=torch.float64)
        rates, hidden = {}, set()
        for row, block in enumerate(blocks.tolist()):
            hits = masked[view, row]
            rates[block] = 1 / (weights[view, row].max() * config.views_per_block) if hits.any() else 1.0
            shown = [*ids[:block].ravel(), *np.where(hits, spec.mask_token_id, ids[block])]
            logits = naive_block_logits(hf_logits(backbone), shown, block * size, size)
            for i in np.flatnonzero(hits).tolist():
                legal, _ = distribution(logits[i], spec.mask_token_id, 1.0, 0, 1.0, 0.0)
                place = block * size + i
                logprobs = logprobs.index_put((torch.tensor(place),), legal[ids[block, i]].log())
                hidden.add(place)
        losses.append(naive_sft_loss(logprobs, rates, hidden, response, size))
    return torch.stack(losses).mean()


def test_a_row_without_anything_masked_has_loss_zero_and_a_gradient() -> None:
    """Under sharding every rank must go through the backward, also one whose noise masked nothing."""
    backbone, spec = TinyModel().make()
    encoded = Encoded(list(prompt(8)), [False] * 4 + [True] * 4)
    segment, count = conversation(encoded, spec, NoiseConfig(), ScriptedNoise([0.5], ["...."]))
    (batch,) = pack([alone(segment)], 100)
    found = loss_of(BlockDiffusionLM(backbone, spec), batch, count)
    assert (count, found.item()) == (4, 0.0)
    assert not flat_gradient(found, backbone.parameters()).any()


@pytest.mark.parametrize("budget", [40, 14], ids=["several rows", "conversations in parts"])
def test_the_loss_of_a_step_is_the_sum_over_its_micro_batches(budget: int) -> None:
    backbone, spec = TinyModel().make()
    model = BlockDiffusionLM(backbone, spec)
    segments = []
    for seed in range(4):
        encoded = Encoded(list(prompt(9, seed)), [False] * 3 + [True] * 6)
        segments.append(conversation(encoded, spec, NoiseConfig(t_min=0.3), np.random.default_rng(seed))[0])
    (whole,) = pack(map(alone, segments), 1000)
    parts = pack(map(alone, segments[::-1]), budget)
    assert (len(parts) > 1 and sum(map(len, parts)) == len(whole)) if budget == 40 else len(parts) > len(segments)
    summed = sum(loss_of(model, part, 24.0) for part in parts)
    one = loss_of(model, whole, 24.0)
    assert summed.item() == pytest.approx(one.item(), rel=1e-5)
    gradients = [flat_gradient(loss, backbone.parameters()) for loss in (summed, one)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5
