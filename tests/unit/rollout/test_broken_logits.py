"""Logits that are not finite: no token is taken from them, and who asked is told which request and which weights."""

import pytest
import torch
from tests.sdar_engine import MASK, VOCAB, answers, engine_of, requests_for, some_prompts, spec_of, tiny_model
from tests.unit.rollout.serving import PARAMS, SPEC, WEIGHTS, requests, served, torch_engine
from torch import Tensor, nn

from dirl.finite import NotFiniteError
from dirl.rollout import ServerEngine
from dirl.types import DecodingParams

pytestmark = pytest.mark.usefixtures("one_thread")


class Breaking(nn.Module):
    """A head that puts `value` at one legal id of one row in its forward number `at`."""

    def __init__(self, head: nn.Module, value: float, at: int) -> None:
        super().__init__()
        self.head, self.value, self.left = head, value, at

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden)
        if self.left == 0:
            logits[-1, MASK - 1] = self.value
        self.left -= 1
        return logits


@pytest.mark.parametrize("strategy", ["low_confidence_dynamic", "low_confidence_static", "sequential"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_torch_engine_refuses_them(value: float, temperature: float, strategy: str) -> None:
    """Also where the position would not have been committed, and where all else would have hidden it: -inf."""
    engine = engine_of(tiny_model(), spec_of(4))
    engine.model.lm_head = Breaking(engine.model.lm_head, value, at=2)
    made = []
    decoding = DecodingParams(strategy, temperature=temperature, max_response_tokens=40, top_k=3)
    with pytest.raises(NotFiniteError, match=r"request \w+#\d: the model's logits are not finite, .*policy version 0"):
        made += engine.generate(requests_for(some_prompts()), decoding)
    assert not made, "two forwards finish none"
    engine.model.lm_head = engine.model.lm_head.head
    assert answers(engine, requests_for(some_prompts()), decoding), "it goes on with the next call"


@pytest.mark.parametrize("where", ["embed_tokens.weight", "layers.1.mlp.up_proj.weight", "norm.weight"])
def test_weights_that_are_not_finite_are_refused_and_give_no_answer(where: str) -> None:
    """A whole tensor of them used to answer token 0 everywhere. Past the check, the logits are caught."""
    model = tiny_model()
    engine = engine_of(model, spec_of(4))
    with torch.no_grad():
        dict(model.model.named_parameters())[where].fill_(torch.nan)
    with pytest.raises(NotFiniteError, match=rf"policy version 1: 'model.{where}' \(1 in all\) holds numbers"):
        engine.update_weights(model.named_parameters(), 1)
    with pytest.raises(ValueError, match="no weights yet"):
        answers(engine, requests_for([(1, 2, 4)]), DecodingParams(max_response_tokens=8))
    engine.policy_version = 1
    with pytest.raises(NotFiniteError, match="logits are not finite"):
        answers(engine, requests_for([(1, 2, 4)]), DecodingParams(max_response_tokens=8))


def test_a_trainer_hears_it_from_a_server_and_does_not_ask_the_next() -> None:
    servers = [served(torch_engine()) for _ in range(2)]
    engine = ServerEngine([s.url for s in servers])
    try:
        engine.setup(None, None, SPEC, "cpu")
        large = {"model.norm.weight": 1e37, "model.embed_tokens.weight": 1e3}  # finite, and their product is not
        engine.update_weights([(name, value * large.get(name, 1)) for name, value in WEIGHTS.named_parameters()], 3)
        with pytest.raises(ValueError, match=r"logits are not finite, with the weights of policy version 3.*says http"):
            list(engine.generate(requests(2, 2), PARAMS))
        engine.update_weights(WEIGHTS.named_parameters(), 4)
        assert len(list(engine.generate(requests(2, 2), PARAMS))) == 4
    finally:
        engine.close()
        for server in servers:
            server.stop()


def test_a_trainer_hears_from_a_server_that_its_weights_are_not_finite() -> None:
    server = served(torch_engine())
    engine = ServerEngine([server.url])
    try:
        engine.setup(None, None, SPEC, "cpu")
        broken = [(name, torch.full_like(value, torch.inf)) for name, value in WEIGHTS.named_parameters()]
        with pytest.raises(ValueError, match=r"weights of policy version 3: 'model.embed_tokens.weight' .*says http"):
            engine.update_weights(broken, 3)
        engine.update_weights(WEIGHTS.named_parameters(), 4)
        assert len(list(engine.generate(requests(2, 2), PARAMS))) == 4
    finally:
        engine.close()
        server.stop()


def test_ids_without_a_token_are_never_drawn() -> None:
    """A flat distribution over a vocabulary of which half has no token: the others are drawn, all of them."""
    unknown = tuple(range(VOCAB // 2, VOCAB))
    spec = spec_of(4)
    spec = type(spec)(4, MASK, (), spec.pad_token_id, VOCAB, tuple(i for i in unknown if i != MASK))
    made = answers(
        engine_of(tiny_model(), spec),
        requests_for(some_prompts() * 8),
        DecodingParams(temperature=1e4, max_response_tokens=40, threshold=1.0),
    )
    drawn = {token for t in made.values() for token in t.response_ids}
    assert drawn == set(range(VOCAB)) - set(unknown) - {MASK}
    for trajectory in made.values():
        trajectory.check(spec)
