"""The plainest decoder is the torch engine without its economies."""

import dataclasses

import pytest
from benchmarks.engine import make_requests
from benchmarks.naive_decoder import decode
from benchmarks.shapes import TOYS, model_config, model_spec, random_backbone

from dirl.rollout import TorchEngine
from dirl.types import DecodingParams


@pytest.mark.parametrize("strategy", ["low_confidence_dynamic", "low_confidence_static", "sequential"])
def test_it_decodes_what_the_torch_engine_decodes(strategy: str) -> None:
    shape = dataclasses.replace(TOYS["tiny"], vocab_size=12)
    spec, config = model_spec(shape, 4), model_config(shape, 4)
    backbone = random_backbone(config).eval()
    engine = TorchEngine(max_batch_size=3)
    engine.setup(config, None, spec, "cpu")
    engine.update_weights(backbone.named_parameters(), 0)
    decoding = DecodingParams(strategy, threshold=0.15, denoising_steps=2, max_response_tokens=13)
    requests = make_requests(spec, 6, prompt_tokens=6)
    wanted = {t.key: t for t in engine.generate(requests, decoding)}
    assert {t.finish_reason for t in wanted.values()} == {"stop", "length"}
    for request in requests:
        found, expected = decode(backbone, spec, request, decoding), wanted[request.prompt_id, request.sample_index]
        assert found.behaviour_logprobs == pytest.approx(expected.behaviour_logprobs, abs=1e-4)
        assert dataclasses.replace(found, behaviour_logprobs=()) == dataclasses.replace(expected, behaviour_logprobs=())
