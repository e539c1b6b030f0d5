"""The collector: scripted answers in, groups with advantages out, whatever the order in which they finish."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import ClassVar

import pytest
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.advantages import Advantage, Mean, ZScore
from dirl.data.prompt_stream import PromptStream
from dirl.models.tokenizer import new_tokenizer
from dirl.rewards import Incomparable, Reward, RewardError, RewardSample, Scorer
from dirl.rl.collector import Collection, Collector, collection_from_state, collection_state, reward_sample
from dirl.rollout import RolloutEngine
from dirl.types import DecodingParams, FinishReason, GenerationRequest, ModelSpec, Prompt, Trajectory

TOKENIZER = new_tokenizer("0123456789x")
END = TOKENIZER.eos_token_id
SPEC = ModelSpec(4, TOKENIZER.mask_token_id, (END,), TOKENIZER.pad_token_id, len(TOKENIZER))
PARAMS = DecodingParams(max_response_tokens=6)
GROUP = 4

Script = Callable[[GenerationRequest, int], str]
"""(request, number of the call to generate) -> response text."""


def prompt(prompt_id: str) -> Prompt:
    return Prompt(prompt_id, (1, 2, 3), question=f"question {prompt_id}", ground_truth=f"truth {prompt_id}")


def respond(request: GenerationRequest, text: str, version: int = 0) -> Trajectory:
    """The text and a stop token, in blocks of 4 that the prompt begins; the tail is `x`."""
    ids = (*TOKENIZER(text, add_special_tokens=False)["input_ids"], END)
    tail = -(len(request.prompt_ids) + len(ids)) % SPEC.block_size
    response = (*ids, *TOKENIZER("x" * tail, add_special_tokens=False)["input_ids"])
    return Trajectory(
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_ids=request.prompt_ids,
        response_ids=response,
        response_length=len(ids),
        step_map=(1,) * len(response),
        behaviour_logprobs=(-0.5,) * len(response),
        finish_reason="stop",
        policy_version=version,
    )


class ScriptedEngine(RolloutEngine):
    """Answers by script, in an order that has nothing to do with that of the requests."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[list[GenerationRequest]] = []

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        pass

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        self.calls.append(list(requests))
        for request in random.Random(len(self.calls)).sample(requests, len(requests)):
            yield respond(request, self.script(request, len(self.calls)))


class Number(Reward):
    """The response as a number; what is no number is an error of the reward."""

    in_process: ClassVar[bool] = True

    def __call__(self, sample: RewardSample) -> float:
        return float(sample.response)


class TruthMatchesQuestion(Reward):
    """1 if question, ground truth and id are of one prompt."""

    in_process: ClassVar[bool] = True

    def __call__(self, sample: RewardSample) -> float:
        told = (sample.question, sample.ground_truth)
        return float(told == (f"question {sample.prompt_id}", f"truth {sample.prompt_id}"))


def collector_of(script: Script, on_error: str = "raise", **settings: object) -> Collector:
    scorer = Scorer([Number(weight=2.0), TruthMatchesQuestion(name="matches")], on_error=on_error)
    return Collector(ScriptedEngine(script), scorer, TOKENIZER, SPEC, GROUP, **settings)


def stream(ids: str) -> Iterator[Prompt]:
    return map(prompt, cycle(ids))


def ids_of(groups: Iterable[Sequence[Trajectory]]) -> str:
    return "".join(group[0].prompt_id for group in groups)


def distinct_answers(request: GenerationRequest, call: int) -> str:
    return str(10 * (ord(request.prompt_id) - ord("a")) + request.sample_index)


def uniform_for(ids: str) -> Script:
    return lambda request, call: "7" if request.prompt_id in ids else distinct_answers(request, call)


# ------------------------------------------------------------------------------------- groups and advantages


def test_results_are_matched_by_id_and_not_by_order() -> None:
    collector = collector_of(distinct_answers)
    result = collector.collect(stream("abc"), 3, PARAMS)
    assert [[t.key for t in group] for group in result.groups] == [[(p, i) for i in range(4)] for p in "abc"]
    for number, group in enumerate(result.groups):
        for index, t in enumerate(group):
            assert t.rewards == {"number": 10.0 * number + index, "matches": 1.0}
            assert t.reward == pytest.approx(2 * (10 * number + index) + 1)
    finished = [t.key for t in result.sampled]
    assert finished != sorted(finished), "the engine should not have finished them in order"
    assert sorted(finished) == [(p, i) for p in "abc" for i in range(4)]
    assert result.counts == {"rounds": 1, "dropped_failed": 0, "dropped_stale": 0, "missing": 0}
    assert result.surplus == []


@pytest.mark.parametrize(("advantage", "unit"), [(Mean(), 1.0), (ZScore(), 1 / math.sqrt(5))])
def test_advantages_compare_the_responses_of_one_group(advantage: Advantage, unit: float) -> None:
    # rewards of a group are r, r + 2, r + 4, r + 6: deviations -3, -1, 1, 3, population std sqrt(5)
    result = collector_of(distinct_answers, advantage=advantage).collect(stream("ab"), 2, PARAMS)
    expected = [-3 * unit, -unit, unit, 3 * unit]
    for group in result.groups:
        assert [t.advantage for t in group] == pytest.approx(expected)
    assert all(t.advantage is None for t in result.sampled)


class Half(Advantage):
    """Of the first half of a group alone."""

    def __call__(self, group: Sequence[Trajectory]) -> list[float]:
        return [1.0] * (len(group) // 2)


class Infinite(Advantage):
    def __call__(self, group: Sequence[Trajectory]) -> list[float]:
        return [math.inf] * len(group)


@pytest.mark.parametrize("advantage", [Half(), Infinite()])
def test_an_advantage_gives_one_finite_number_a_trajectory(advantage: Advantage) -> None:
    with pytest.raises(ValueError, match=rf"rollout.advantage={type(advantage).__name__} gave .* for a group of 4"):
        collector_of(distinct_answers, advantage=advantage).collect(stream("ab"), 2, PARAMS)


def test_progress_is_told_of_every_trajectory() -> None:
    told: list[int] = []
    collector_of(distinct_answers).collect(stream("abc"), 3, PARAMS, finished=told.append)
    assert told == [1] * 12


def test_without_dynamic_sampling_uniform_groups_stay_with_advantage_0() -> None:
    result = collector_of(uniform_for("b")).collect(stream("ab"), 2, PARAMS)
    assert ids_of(result.groups) == "ab"
    assert [t.advantage for t in result.groups[1]] == [0.0] * 4


# ---------------------------------------------------------------------------------------- filter and refill


def test_dynamic_sampling_drops_uniform_groups_and_refills() -> None:
    collector = collector_of(uniform_for("acd"), dynamic_sampling=True)
    result = collector.collect(stream("abcdef"), 3, PARAMS)
    assert ids_of(result.groups) == "bef"
    assert [{r.prompt_id for r in call} for call in collector.engine.calls] == [set("abc"), set("de"), set("f")]
    assert result.counts == {"rounds": 3, "dropped_uniform": 3, "dropped_failed": 0, "dropped_stale": 0, "missing": 0}
    assert {t.prompt_id for t in result.sampled} == set("abcdef"), "dropped ones are part of the policy's view"


class Judge(Reward):
    """1 if the last digit of the response is above 4."""

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool | None] = True

    def __call__(self, sample: RewardSample) -> float:
        return float(sample.response[-1] > "4")


class Half(Judge):
    """What offsets half of a `Judge`."""

    judges: ClassVar[bool | None] = False

    def __call__(self, sample: RewardSample) -> float:
        return -super().__call__(sample)


def digits(**answers: str) -> Script:
    """One digit a sample, by prompt."""
    return lambda request, call: answers[request.prompt_id][request.sample_index]


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        ({"a": "1234", "b": "1239", "c": "6789"}, "b"),  # all wrong, one right, all right; the totals differ everywhere
        ({"a": "1299", "b": "3579", "c": "5555"}, "ab"),
    ],
)
def test_dynamic_sampling_keeps_what_is_right_and_wrong_whatever_else_the_total_adds(
    answers: dict[str, str], kept: str
) -> None:
    scorer = Scorer([Number(name="term"), Judge()])  # neither the first nor the total, but the one that judges
    collector = Collector(
        ScriptedEngine(digits(**answers)), scorer, TOKENIZER, SPEC, GROUP, dynamic_sampling=True, max_rounds=1
    )
    result = collector.collect(stream("abc"), 3, PARAMS)
    assert ids_of(result.groups) == kept
    assert result.counts["dropped_uniform"] == 3 - len(kept)


def test_dynamic_sampling_drops_right_and_wrong_of_equal_reward_as_they_teach_nothing() -> None:
    scorer = Scorer([Judge(), Half()])
    engine = ScriptedEngine(digits(a="1239", b="1299"))
    collector = Collector(engine, scorer, TOKENIZER, SPEC, GROUP, dynamic_sampling=True, max_rounds=1)
    result = collector.collect(stream("ab"), 2, PARAMS)
    assert (result.groups, result.counts["dropped_uniform"]) == ([], 2)


def test_a_named_component_decides_in_place_of_the_one_that_judges() -> None:
    answers = digits(a="1239", b="2222")
    scorer = Scorer([Number(name="term"), Judge()], correct="term")
    collector = Collector(ScriptedEngine(answers), scorer, TOKENIZER, SPEC, GROUP, dynamic_sampling=True, max_rounds=1)
    assert ids_of(collector.collect(stream("ab"), 2, PARAMS).groups) == "a"


class SometimesIncomparable(Judge):
    """Cannot compare a 0."""

    def __call__(self, sample: RewardSample) -> float:
        return Incomparable(0.0) if sample.response == "0" else super().__call__(sample)


def test_what_could_not_be_compared_is_counted_and_stays_in_its_group_as_wrong(caplog) -> None:
    engine = ScriptedEngine(digits(a="0809", b="1239", c="0000"))
    collector = Collector(engine, Scorer([SometimesIncomparable()]), TOKENIZER, SPEC, GROUP, dynamic_sampling=True)
    result = collector.collect(stream("abc"), 2, PARAMS)
    assert ids_of(result.groups) == "ab"
    assert [t.reward for t in result.groups[0]] == [0.0, 1.0, 0.0, 1.0]
    assert result.counts["incomparable"] == 2
    assert "2 of 8 answers could not be compared" in caplog.text


def test_rounds_are_capped_and_what_is_missing_is_counted() -> None:
    collector = collector_of(uniform_for("abcd"), dynamic_sampling=True, max_rounds=3)
    result = collector.collect(stream("abcde"), 2, PARAMS)
    assert ids_of(result.groups) == "e"
    assert len(collector.engine.calls) == 3
    assert result.counts == {"rounds": 3, "dropped_uniform": 5, "dropped_failed": 0, "dropped_stale": 0, "missing": 1}


def collected(groups: str, **settings: object) -> tuple[Collector, list[list[Trajectory]]]:
    collector = collector_of(distinct_answers, **settings)
    made = collector.collect(stream(groups), len(groups), PARAMS).groups
    collector.engine.calls.clear()
    return collector, made


def test_surplus_comes_first_and_what_is_not_needed_then_is_dropped_and_counted() -> None:
    collector, old = collected("xyz")
    result = collector.collect(stream("abc"), 2, PARAMS, surplus=old)
    assert (ids_of(result.groups), ids_of(result.surplus), result.counts["dropped_stale"]) == ("xy", "", 1)
    assert (collector.engine.calls, result.sampled) == ([], []), "nothing had to be made"
    result = collector.collect(stream("abc"), 3, PARAMS, surplus=old[2:])
    assert (ids_of(result.groups), ids_of(result.surplus)) == ("zab", "")
    assert result.counts["rounds"] == 1


def test_oversampling_makes_a_surplus_for_the_next_epoch() -> None:
    collector = collector_of(uniform_for("b"), dynamic_sampling=True, oversample=1.5)
    result = collector.collect(stream("abcdefg"), 4, PARAMS)
    assert [len({r.prompt_id for r in call}) for call in collector.engine.calls] == [6]
    assert (ids_of(result.groups), ids_of(result.surplus)) == ("acde", "f")


def test_a_collection_never_asks_for_the_same_prompt_twice() -> None:
    collector = collector_of(uniform_for("ab"), dynamic_sampling=True, max_rounds=9)
    result = collector.collect(PromptStream([prompt(i) for i in "abcd"], seed=0), 3, PARAMS)
    assert sorted(ids_of(result.groups)) == ["c", "d"]
    assert result.counts["missing"] == 1
    made = [r.prompt_id for call in collector.engine.calls for r in call if r.prompt_id in "cd"]
    assert len(made) == 2 * GROUP


# -------------------------------------------------------------------------------------------- failed rewards


def fails_for(prompt_id: str, sample_index: int) -> Script:
    def script(request: GenerationRequest, call: int) -> str:
        bad = (request.prompt_id, request.sample_index) == (prompt_id, sample_index)
        return "x" if bad else distinct_answers(request, call)

    return script


@pytest.mark.parametrize("dynamic_sampling", [False, True])
def test_a_failed_reward_drops_its_group_and_counts_it(dynamic_sampling: bool) -> None:
    collector = collector_of(fails_for("b", 2), "drop_group", dynamic_sampling=dynamic_sampling)
    result = collector.collect(stream("abcd"), 3, PARAMS)
    assert ids_of(result.groups) == "acd"
    assert (result.counts["dropped_failed"], result.counts["rounds"], result.counts["missing"]) == (1, 2, 0)
    assert not result.counts["dropped_uniform"]
    assert sorted(t.key for t in result.sampled if t.prompt_id == "b") == [("b", 0), ("b", 1), ("b", 3)]
    assert all(len(group) == GROUP for group in result.groups)
    assert result.lost == {"b": 1}
    again = collection_from_state(collection_state(result))
    assert (again.lost, again.counts, again.groups) == (result.lost, result.counts, result.groups)


def test_a_failed_reward_stops_the_run_if_it_is_to_be_raised() -> None:
    with pytest.raises(RewardError, match=r"prompt_id='b' sample_index=2") as caught:
        collector_of(fails_for("b", 2)).collect(stream("abcd"), 3, PARAMS)
    assert "question b" in str(caught.value)


# ------------------------------------------------------------------------------------------------------ seeds


def seeds_of(collector: Collector, ids: str, epoch: int) -> dict[tuple[int, int, str, int], int]:
    """{(epoch, round, prompt, sample): seed} of a collection from these prompts."""
    collector.engine.calls.clear()
    collector.collect(stream(ids), 3, PARAMS, epoch=epoch)
    calls = enumerate(collector.engine.calls, 1)
    return {(epoch, n, r.prompt_id, r.sample_index): r.seed for n, call in calls for r in call}


def test_seeds_differ_between_epochs_rounds_prompts_and_samples() -> None:
    collector = collector_of(uniform_for("abc"), dynamic_sampling=True, max_rounds=2)
    seeds = seeds_of(collector, "abc", 0) | seeds_of(collector, "abc", 1)
    assert len(seeds) == 2 * 2 * 3 * GROUP
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds.values())


def test_seeds_do_not_depend_on_the_order_of_the_prompts_but_on_the_seed_of_the_run() -> None:
    seeds = seeds_of(collector_of(distinct_answers, seed=1), "abc", 5)
    assert seeds_of(collector_of(distinct_answers, seed=1), "cab", 5) == seeds
    assert seeds_of(collector_of(distinct_answers, seed=1), "abd", 5).items() > {
        (key, seed) for key, seed in seeds.items() if key[2] in "ab"
    }
    other = seeds_of(collector_of(distinct_answers, seed=2), "abc", 5)
    assert not set(other.values()) & set(seeds.values())


def test_a_run_has_the_same_seeds_on_every_machine() -> None:
    # worked out apart: blake2b of the text "(1, 5, 1, 'a', 0)", 8 bytes, big-endian, half of it
    assert seeds_of(collector_of(distinct_answers, seed=1), "abc", 5)[5, 1, "a", 0] == 7645643107081551624


# ----------------------------------------------------------------------------------------------------- stream


def test_no_prompt_comes_twice_in_a_round_at_the_seam_of_two_passes() -> None:
    prompts = [prompt(letter) for letter in "abcde"]
    plain = [p.prompt_id for p in islice(PromptStream(prompts, seed=0), 40)]
    rounds = [plain[i : i + 3] for i in range(0, 39, 3)]
    assert any(len(set(ids)) < 3 for ids in rounds), "the plain stream should repeat a prompt at a seam"
    collector, passes = collector_of(distinct_answers), PromptStream(prompts, seed=0)
    for epoch in range(13):
        result: Collection = collector.collect(passes, 3, PARAMS, epoch=epoch)
        assert len(set(ids_of(result.groups))) == 3
        assert {len(group) for group in result.groups} == {GROUP}


# ---------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize(("reason", "text"), [("stop", "12"), ("length", "12<|im_end|>")])
def test_a_reward_sees_the_response_up_to_the_stop_token(reason: FinishReason, text: str) -> None:
    # the prompt's three tokens and one token fill a block, then 2 of 4 positions are the tail
    request = GenerationRequest("a", 3, (1, 2, 3), seed=0)
    ids = TOKENIZER("12", add_special_tokens=False)["input_ids"]
    made = Trajectory(
        *("a", 3, request.prompt_ids),
        response_ids=(*ids, END, 0, 0),
        response_length=3,
        step_map=(1, 3, 1, 2, 2),
        behaviour_logprobs=(-1.0,) * 5,
        finish_reason=reason,
        policy_version=0,
    )
    assert reward_sample(made, prompt("a"), PARAMS, SPEC, TOKENIZER) == RewardSample(
        prompt_id="a",
        sample_index=3,
        question="question a",
        response=text,
        ground_truth="truth a",
        response_length=3,
        denoising_steps=1 + 3,
        max_response_tokens=6,
        block_size=4,
    )
