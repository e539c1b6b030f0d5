"""The weights, precision and memory of the torch engine."""

from collections.abc import Callable

import pytest
import torch
from tests.sdar_engine import VOCAB, answers, assert_naive, engine_of, requests_for, some_prompts, spec_of, tiny_model
from torch import Tensor

from dirl.models import NewModel
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest

pytestmark = pytest.mark.usefixtures("one_thread")


def test_new_weights_decode_as_the_new_model() -> None:
    old, new, spec = tiny_model(0), tiny_model(5), spec_of(4)
    requests, decoding = requests_for(some_prompts()), DecodingParams(temperature=0, max_response_tokens=10)
    engine = engine_of(old, spec, version=3)
    before = answers(engine, requests, decoding)
    assert {t.policy_version for t in before.values()} == {3}
    engine.update_weights(new.named_parameters(), 17)
    after = answers(engine, requests, decoding)
    assert {t.policy_version for t in after.values()} == {17}
    assert all(before[key].response_ids != after[key].response_ids for key in after)
    assert_naive(after, new, requests, spec, decoding)


def test_the_weights_are_copies() -> None:
    model, spec = tiny_model(), spec_of(4)
    decoding, requests = DecodingParams(temperature=0, max_response_tokens=6), requests_for(some_prompts()[:3])
    engine = engine_of(model, spec)
    before = answers(engine, requests, decoding)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert answers(engine, requests, decoding) == before


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {("module." + name if name == "lm_head.weight" else name): value for name, value in weights.items()}


def without_the_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name != "lm_head.weight"}


def with_a_longer_vocabulary(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {"lm_head.weight": torch.zeros(VOCAB + 1, 32)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed, "'module.lm_head.weight' is unknown"),
        (without_the_head, r"left out \['lm_head.weight'\]"),
        (with_a_longer_vocabulary, r"'lm_head.weight' has shape \(20, 32\), the engine \(19, 32\)"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(spoil: Callable[[dict], dict], message: str) -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    with pytest.raises(ValueError, match=message):
        engine.update_weights(spoil(dict(tiny_model().named_parameters())).items(), 1)
    assert engine.policy_version == -1, "half an update is no policy: nothing samples from it"


def test_generating_before_weights_is_an_error() -> None:
    engine = TorchEngine()
    for _ in range(2):  # also when a used engine is set up anew
        engine.setup(tiny_model().config, None, spec_of(4), "cpu")
        with pytest.raises(ValueError, match="no weights yet: call update_weights"):
            list(engine.generate(requests_for([(1, 2)]), DecodingParams()))
        engine.update_weights(tiny_model().named_parameters(), 0)


def test_an_engine_can_hold_its_weights_in_another_precision() -> None:
    engine = TorchEngine(dtype="bfloat16")
    engine.setup(tiny_model().config, None, spec_of(4), "cpu")
    engine.update_weights(tiny_model().named_parameters(), 0)
    assert {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}
    (made,) = answers(engine, requests_for([(1, 2, 4, 6, 7)]), DecodingParams(max_response_tokens=4)).values()
    logprobs = torch.tensor(made.behaviour_logprobs)
    assert (logprobs.bfloat16().float() != logprobs).any(), "log-probs stay in fp32"


def test_no_room_for_a_sequence_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_batch_size=0: use at least 1"):
        TorchEngine(max_batch_size=0)


def test_the_engines_dtype_leaves_the_trainers_config_alone() -> None:
    """transformers writes the dtype that a model is made with into its config, and the trainer builds from that."""
    description = NewModel(hidden_size=32, num_hidden_layers=1, alphabet="01").describe()
    before = description.config.dtype
    engine = TorchEngine(dtype="bfloat16")
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    assert engine.model.dtype == torch.bfloat16
    assert description.config.dtype == before == torch.float32


def test_the_cache_is_given_back_between_rollouts() -> None:
    source = NewModel(hidden_size=32, num_hidden_layers=1, alphabet="01")
    description, engine = source.describe(), TorchEngine()
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    engine.update_weights(source.build(description.config).named_parameters(), 0)
    running = engine.generate([GenerationRequest("a", i, (0, 1), i) for i in range(3)], DecodingParams())
    next(running)
    assert engine.cache is not None
    list(running)
    assert engine.cache is None
