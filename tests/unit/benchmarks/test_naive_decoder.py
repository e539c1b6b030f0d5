"""Other decoders that the torch engine is measured beside: the plainest one, and one with a cache."""

import dataclasses

import pytest
from benchmarks import cached_decoder
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


@pytest.mark.parametrize("strategy", ["low_confidence_dynamic", "low_confidence_static"])
@pytest.mark.parametrize("prompt", [2, 6, 8])
def test_the_decoder_with_a_cache_decodes_greedily_what_the_torch_engine_decodes(strategy: str, prompt: int) -> None:
    shape = dataclasses.replace(TOYS["tiny"], vocab_size=12)
    spec, config = dataclasses.replace(model_spec(shape, 4), stop_token_ids=()), model_config(shape, 4)
    backbone = random_backbone(config).eval()
    engine = TorchEngine(max_batch_size=2)
    engine.setup(config, None, spec, "cpu")
    engine.update_weights(backbone.named_parameters(), 0)
    backbone.set_attn_implementation("sdpa")
    decoding = DecodingParams(strategy, threshold=0.15, denoising_steps=2, temperature=0, max_response_tokens=12)
    requests = make_requests(spec, 3, prompt_tokens=prompt)
    for expected, request in zip(engine.generate(requests, decoding), requests, strict=True):
        tokens, steps = cached_decoder.decode(backbone, spec, request, decoding)
        assert tuple(tokens) == expected.response_ids
        assert steps == expected.denoising_steps(4)
