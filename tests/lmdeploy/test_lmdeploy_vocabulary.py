"""LMDeploy's real engine: logits that are not finite, and a model with ids that the tokenizer has no token for."""

import dataclasses
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tests.lmdeploy.cpu import Toy, lmdeploy_on_cpu
from tests.lmdeploy.test_lmdeploy_engine import Pair, assert_same, some_params, some_requests
from tests.tiny import TinyModel
from torch import Tensor

from dirl.finite import NotFiniteError
from dirl.rollout import LMDeployEngine, TorchEngine

pytestmark = pytest.mark.usefixtures("one_thread")


class Breaking:
    """`Toy.get_logits` with a number that is not finite, at one legal id of the last row of one forward."""

    def __init__(self, value: float, at: int) -> None:
        self.value, self.left, self.own = value, at, Toy.get_logits

    def __call__(self, toy: Toy, hidden: Tensor) -> Tensor:
        logits = self.own(toy, hidden)
        if self.left == 0:
            logits[..., -1, 1] = self.value
        self.left -= 1
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 2, 3], ids="forward {}".format)
def test_the_request_is_refused_and_the_engine_goes_on(value: float, at: int) -> None:
    """In a prefill (the first forward) and in decoding; the other requests of the batch are given up with it.

    One position of the first block is masked; the forward after the first writes its keys.
    """
    decoding = dataclasses.replace(some_params(1), strategy="sequential", denoising_steps=None, max_response_tokens=9)
    requests = [dataclasses.replace(r, prompt_ids=r.prompt_ids[:3]) for r in some_requests(4, 1)]
    with lmdeploy_on_cpu(4):
        pair = Pair(4)
        try:
            expected = pair.compare(requests, decoding)
            breaking = Breaking(value, at)
            said = pytest.raises(
                NotFiniteError, match=r"request p\d#\d: the model's logits are not finite, .*version 7"
            )
            with patch.object(Toy, "get_logits", lambda self, hidden: breaking(self, hidden)), said:
                list(pair.engine.generate(requests, decoding))
            assert breaking.left < 0
            again = pair.compare(requests, decoding)
            assert sorted(t.response_ids for t in again) == sorted(t.response_ids for t in expected)
            assert not pair.engine.tracing.broken and not pair.engine.tracing.traces
        finally:
            pair.engine.close()


def test_weights_that_are_not_finite_give_no_answer_and_later_ones_do() -> None:
    with lmdeploy_on_cpu(4):
        pair = Pair(4)
        try:
            with pytest.raises(NotFiniteError, match="policy version 8"):
                pair.engine.update_weights([(name, torch.full_like(w, torch.nan)) for name, w in pair.weights], 8)
            with pytest.raises(ValueError, match="no weights"):
                list(pair.engine.generate(some_requests(6, 0), some_params(0)))
            pair.engine.update_weights(pair.weights, 7)
            pair.compare(some_requests(6, 0), some_params(0))
        finally:
            pair.engine.close()


def engine_with(engine: Any, device: str, source: TinyModel) -> Any:
    description = source.describe()
    engine.setup(description.config, description.tokenizer, description.spec, device)
    engine.update_weights(source.build(description.config).named_parameters(), policy_version=7)
    return engine


@pytest.mark.parametrize("seed", range(3))
def test_no_id_without_a_token_is_drawn_and_the_torch_engine_agrees(seed: int) -> None:
    source, decoding, requests = TinyModel(4, padding=40), some_params(seed), some_requests(12, seed)
    spec = source.describe().spec
    with lmdeploy_on_cpu(4):
        engine = LMDeployEngine(max_batch_size=16, kv_blocks=64, page_tokens=16, prefill_tokens=128)
        engine_with(engine, "cuda", source)
        try:
            expected = {t.key: t for t in engine_with(TorchEngine(), "cpu", source).generate(requests, decoding)}
            made = list(engine.generate(requests, decoding))
        finally:
            engine.close()
    assert len(made) == len(requests)
    for trajectory in made:
        trajectory.check(spec)
        assert_same(trajectory, expected[trajectory.key])
    assert len(spec.unknown_ids) == 40
