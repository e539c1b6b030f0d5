"""Whoever watches the torch engine sees each denoising step, and changes nothing."""

from collections import defaultdict

import pytest
from tests.sdar_engine import answers, assert_all_the_same, engine_of, requests_for, some_prompts, spec_of, tiny_model

from dirl.rollout.torch.active import Partial
from dirl.types import DecodingParams

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 4


def test_a_watched_engine_makes_the_same_and_tells_each_token_at_its_step() -> None:
    model, decoding = tiny_model(2, scale=0.1), DecodingParams(threshold=0.5, max_response_tokens=20)
    requests = requests_for([ids for seed in range(2) for ids in some_prompts(seed)])
    alone = answers(engine_of(model, spec_of(SIZE), 5), requests, decoding)
    watched = engine_of(model, spec_of(SIZE), 5)
    seen: dict[tuple[str, int], list[Partial]] = defaultdict(list)

    def watch(partials: list[Partial]) -> None:
        for partial in partials:
            seen[partial.request.prompt_id, partial.request.sample_index].append(partial)

    watched.watch = watch
    assert_all_the_same(answers(watched, requests, decoding), alone)
    assert seen.keys() == alone.keys()
    for key, trajectory in alone.items():
        head = -len(trajectory.prompt_ids) % SIZE or SIZE
        steps = iter(seen[key])
        for start in [0, *range(head, len(trajectory.response_ids), SIZE)]:
            end = head if start == 0 else start + SIZE
            ids, step_map = trajectory.response_ids[start:end], trajectory.step_map[start:end]
            for step in range(1, max(step_map) + 1):
                partial = next(steps)
                if step == max(step_map):
                    assert partial.done == trajectory.response_ids[:end] and partial.block == ()
                    continue
                assert partial.done == trajectory.response_ids[:start]
                shown = tuple(token if at <= step else None for token, at in zip(ids, step_map, strict=True))
                assert partial.block == shown
        assert next(steps, None) is None


def test_what_a_watcher_raises_ends_the_generation_and_the_engine_goes_on() -> None:
    engine = engine_of(tiny_model(2), spec_of(SIZE), 2)
    requests, decoding = requests_for(some_prompts(0)[:1]), DecodingParams(max_response_tokens=8)

    def enough(partials: list[Partial]) -> None:
        raise KeyError("enough")

    engine.watch = enough
    with pytest.raises(KeyError, match="enough"):
        list(engine.generate(requests, decoding))
    engine.watch = None
    assert len(list(engine.generate(requests, decoding))) == 1
