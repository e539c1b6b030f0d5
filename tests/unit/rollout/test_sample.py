"""The one entrance: requests and their seeds, engines that answer what was not asked, and where responses end."""

from collections.abc import Iterator, Sequence

import pytest

from dirl.rollout import RolloutEngine
from dirl.rollout.response import finished_trajectory, response_end
from dirl.rollout.sample import requests_for, sample
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Prompt, Trajectory

PROMPTS = [Prompt(name, (1, 2), "?", "!") for name in "ab"]


class Scripted(RolloutEngine):
    """Answers the requests of these numbers, in this order."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def setup(self, *args: object) -> None:
        """Nothing."""

    def update_weights(self, weights: object, policy_version: int) -> None:
        """Nothing."""

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        stranger = GenerationRequest("c", 0, (1, 2), 0)
        for number in self.numbers:
            request = requests[number] if number < len(requests) else stranger
            yield finished_trajectory(request, (5, 6), (1, 1), (-1.0, -1.0), (2, "length"), 0)


def test_every_sample_has_a_seed_that_its_neighbours_do_not_change() -> None:
    all_of_them, alone = requests_for(PROMPTS, 3, (7, 1)), requests_for(PROMPTS[1:], 2, (7, 1))
    assert [(r.prompt_id, r.sample_index) for r in all_of_them] == [(p, i) for p in "ab" for i in range(3)]
    assert len({r.seed for r in all_of_them}) == 6
    assert alone == all_of_them[3:5]
    assert {r.seed for r in requests_for(PROMPTS, 3, (7, 2))}.isdisjoint(r.seed for r in all_of_them)


def test_trajectories_come_in_the_order_of_the_engine() -> None:
    made = sample(Scripted(3, 0, 2, 1), PROMPTS, 2, DecodingParams(), (0,))
    assert [t.key for t in made] == [("b", 1), ("a", 0), ("b", 0), ("a", 1)]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 2), "Scripted ended with 1 of 4 requests unanswered, the first: b#1"),
        ((0, 0), "Scripted answered a#0, which it was not asked, or has answered already"),
        ((0, 9), "Scripted answered c#0, which it was not asked"),
    ],
)
def test_an_engine_that_answers_wrongly_is_an_error(numbers: tuple[int, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        list(sample(Scripted(*numbers), PROMPTS, 2, DecodingParams(), (0,)))


@pytest.mark.parametrize(
    ("ids", "limit", "end"),
    [
        ((5, 9, 5, 5), 4, (2, "stop")),
        ((5, 9, 5, 9), 4, (2, "stop")),  # the earliest
        ((5, 5, 5, 9), 3, (3, "length")),  # a stop token beyond the limit
        ((5, 5, 9, 5), 3, (3, "stop")),  # at the limit
        ((5, 5, 5, 5), 4, (4, "length")),
        ((5, 5, 5, 5), 5, None),
        ((), 5, None),
    ],
)
def test_a_response_ends_at_the_earliest_of_stop_token_and_limit(
    ids: tuple[int, ...], limit: int, end: tuple[int, str] | None
) -> None:
    assert response_end(ids, {9}, limit) == end


def test_the_tail_after_the_stop_token_is_kept() -> None:
    spec = ModelSpec(4, mask_token_id=9, stop_token_ids=(7, 8), pad_token_id=0, vocab_size=10)
    request = GenerationRequest("q", 5, (1, 1, 1, 1), seed=3)
    made = finished_trajectory(request, [1, 2, 8, 7], [2, 1, 1, 3], [-0.5, -1.0, -1.5, -2.0], (3, "stop"), 6)
    made.check(spec)
    assert (made.key, made.prompt_ids, made.policy_version) == (("q", 5), (1, 1, 1, 1), 6)
    assert (made.response_ids, made.text_ids) == ((1, 2, 8, 7), (1, 2, 8))
    assert (made.step_map, made.behaviour_logprobs) == ((2, 1, 1, 3), (-0.5, -1.0, -1.5, -2.0))


def test_an_engine_with_the_old_name_of_sleep_is_no_engine_that_never_sleeps() -> None:
    with pytest.raises(TypeError, match=r"Tired\.rest: .* is `sleep` now"):
        type("Tired", (Scripted,), {"rest": lambda self: None})
