"""LMDeploy as it is, which `benchmarks.untraced` measures: it decodes as many tokens, without our changes."""

import dataclasses

import pytest
from benchmarks.engine import make_requests
from benchmarks.untraced import UntracedEngine
from tests.lmdeploy.cpu import lmdeploy_on_cpu
from tests.tiny import TinyModel

from dirl.types import DecodingParams


@pytest.mark.usefixtures("one_thread")
def test_lmdeploy_as_it_is_answers_with_numbers_of_tokens() -> None:
    description = TinyModel(4).describe()
    spec = dataclasses.replace(description.spec, stop_token_ids=())
    with lmdeploy_on_cpu(4):
        engine = UntracedEngine(max_batch_size=8, kv_blocks=64, page_tokens=16, prefill_tokens=128)
        engine.setup(description.config, description.tokenizer, spec, "cuda")
        engine.update_weights(TinyModel(4).build(description.config).named_parameters(), 0)
        decoding = DecodingParams(threshold=1.0, temperature=0.0, max_response_tokens=8)
        answers = list(engine.generate(make_requests(spec, 4, 6), decoding))
        assert engine.tracing.forwards == 0  # our sampling has not been called
        engine.close()
    assert answers == [8] * 4
