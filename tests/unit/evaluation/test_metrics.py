"""Metrics of responses against numbers worked by hand, and one evaluation of a scripted engine."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import ClassVar

import pytest
from tests.unit.rewards.misbehaving import Boxes
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.evaluation import Evaluation, ResponseMetrics, Settings, run_evaluation
from dirl.evaluation.metrics import pass_at_k
from dirl.models.tokenizer import new_tokenizer
from dirl.rewards import Length, Reward, RewardSample, Scorer
from dirl.rollout import RolloutEngine
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Prompt, Trajectory

TOKENIZER = new_tokenizer("0123456789x")
SPEC = ModelSpec(2, TOKENIZER.mask_token_id, (TOKENIZER.eos_token_id,), TOKENIZER.pad_token_id, len(TOKENIZER))


def scored(prompt_id: str, index: int, right: float, bonus: float = 0.0, **changes: object) -> Trajectory:
    """Four response tokens after a prompt of 2, in blocks of 2: three denoising steps."""
    made = Trajectory(
        prompt_id=prompt_id,
        sample_index=index,
        prompt_ids=(1, 1),
        response_ids=(1, 2, 3, 4),
        response_length=3,
        step_map=(1, 1, 1, 2),
        behaviour_logprobs=(-0.5, -0.5, -0.5, -0.5),
        finish_reason="stop",
        policy_version=0,
        reward=right + bonus,
        rewards={"right": right, "bonus": bonus},
    )
    return dataclasses.replace(made, **changes)


def computed(trajectories: Iterable[Trajectory], pass_at: Sequence[int] = ()) -> dict[str, float]:
    metrics = ResponseMetrics(["right", "bonus"], block_size=2, pass_at=pass_at)
    metrics.update(trajectories)
    return metrics.compute()


def test_metrics_are_those_worked_by_hand() -> None:
    trajectories = [
        scored("a", 0, right=1.0, bonus=0.25),
        scored("a", 1, right=-1.0),
        scored("a", 2, right=0.0, bonus=0.75, finish_reason="length", response_length=4),
        # a prompt token in the first block: blocks of 1, 2 and 2 response tokens, of 1, 2 and 1 steps
        scored("b", 0, 0.5, prompt_ids=(1,), response_ids=(1,) * 5, step_map=(1, 2, 1, 1, 1), response_length=5),
    ]
    assert computed(trajectories, pass_at=(1, 2, 3)) == pytest.approx(
        {
            "reward": (1.25 - 1.0 + 0.75 + 0.5) / 4,
            "reward/right": (1.0 - 1.0 + 0.0 + 0.5) / 4,
            "reward/bonus": (0.25 + 0.75) / 4,
            "accuracy": 2 / 4,  # only what is above 0 is right
            "response_length": (3 + 3 + 4 + 5) / 4,
            "truncated": 1 / 4,
            "tokens_per_step": (3 + 3 + 4 + 5) / (3 + 3 + 3 + 4),  # a ratio of sums, without the tail
            "denoising_steps": (3 + 3 + 3 + 4) / 4,
            "pass_at_1": (1 / 3 + 1) / 2,
            "pass_at_2": 2 / 3,  # of the pairs out of three, two hold the right one; b has one sample only
            "pass_at_3": 1.0,
        }
    )


def test_a_response_without_a_reward_is_wrong_and_no_part_of_other_means() -> None:
    metrics = ResponseMetrics(["bonus", "right"], block_size=2, pass_at=(1, 2), correct="right")
    metrics.update([scored("a", 0, 1.0, bonus=-1.0), scored("a", 1, 0.0, bonus=1.0)], lost={"a": 2, "b": 1})
    values = metrics.compute()
    assert values["accuracy"] == pytest.approx(1 / 5)
    assert values["pass_at_1"] == pytest.approx((1 / 4 + 0) / 2)
    assert values["pass_at_2"] == pytest.approx(1 - 3 / 6), (
        "of the pairs out of four, three hold no right one; b has one"
    )
    assert (values["reward/right"], values["response_length"]) == (0.5, 3.0)
    only_lost = ResponseMetrics(["right"], block_size=2)
    only_lost.update([], lost={"a": 3})
    assert only_lost.compute()["accuracy"] == 0.0


def test_metrics_add_up_over_updates_and_begin_anew_after_a_reset() -> None:
    metrics = ResponseMetrics(["right", "bonus"], block_size=2, pass_at=(1,))
    metrics.update([scored("a", 0, 1.0), scored("a", 1, 1.0)])
    metrics.update([scored("b", 0, 0.0), scored("c", 0, 0.0)])
    assert metrics.compute()["accuracy"] == 0.5
    assert metrics.compute()["pass_at_1"] == pytest.approx(1 / 3), "a mean over prompts, not over samples"
    metrics.reset()
    metrics.update([scored("d", 0, 0.0)])
    assert metrics.compute()["accuracy"] == metrics.compute()["pass_at_1"] == 0.0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metrics_without_a_sample_are_left_out() -> None:
    two = [scored("a", 0, 1.0), scored("a", 1, 0.0), scored("b", 0, 0.0)]
    assert "pass_at_2" in computed(two, pass_at=(2, 4))
    assert "pass_at_4" not in computed(two, pass_at=(2, 4))
    assert computed([]) == {}


def test_a_reward_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="trajectory a#0: reward is nan"):
        computed([scored("a", 0, right=1.0, bonus=float("nan"))])


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples: int) -> None:
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            subsets = list(combinations(range(samples), k))
            hits = sum(min(subset) < correct for subset in subsets)  # the first `correct` answers are right
            assert pass_at_k(samples, correct, k) == pytest.approx(hits / len(subsets), abs=1e-12)


# ------------------------------------------------------------------------------------------------- evaluate


class Right(Reward):
    """1 if the response is the ground truth; a response `x` makes it fail."""

    in_process: ClassVar[bool] = True

    def __call__(self, sample: RewardSample) -> float:
        return float(int(sample.response) == int(sample.ground_truth))


class CountingEngine(RolloutEngine):
    """Answers 0, 1, 2, ... to the samples of a prompt, `x` to those of prompt `broken`; finishes in any order."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        pass

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        pass

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        self.requests += requests
        for r in random.Random(0).sample(requests, len(requests)):
            text = "x" if r.prompt_id == "broken" else str(r.sample_index)
            (token,) = TOKENIZER(text, add_special_tokens=False)["input_ids"]
            ids = (token, TOKENIZER.eos_token_id)
            yield Trajectory(r.prompt_id, r.sample_index, r.prompt_ids, ids, 2, (1, 2), (-0.5, -0.5), "stop", 0)


def questions(**truths: str) -> list[Prompt]:
    return [Prompt(prompt_id, (1, 2), "?", truth) for prompt_id, truth in truths.items()]


def evaluation(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    settings: Settings,
    finished: Callable[[int], None] = lambda n: None,
) -> Evaluation:
    scorer = Scorer([Right()], on_error="drop_group")
    return run_evaluation(engine, prompts, scorer, settings, SPEC, TOKENIZER, finished=finished)


def test_an_evaluation_samples_scores_and_reports() -> None:
    told: list[int] = []
    prompts = questions(a="0", b="3", c="9")
    result = evaluation(CountingEngine(), prompts, Settings(DecodingParams(), 4, resamples=0), told.append)
    assert result.metrics.pop("seconds") > 0
    assert result.metrics.pop("tokens_per_second") > 0
    # of 4 samples a and b have one right answer each, c none
    assert result.metrics == pytest.approx(
        {
            "reward": 1 / 6,
            "reward/right": 1 / 6,
            "accuracy": 1 / 6,
            "response_length": 2.0,
            "truncated": 0.0,
            "tokens_per_step": 1.0,
            "denoising_steps": 2.0,
            "pass_at_1": 1 / 6,
            "pass_at_2": 1 / 3,
            "pass_at_4": 2 / 3,
            "responses": 12.0,
            "lost": 0.0,
            "reward/incomparable": 0.0,
        }
    )
    assert sum(told) == 12
    right = sorted(t.key for t in result.trajectories if t.reward == 1.0)
    assert right == [("a", 0), ("b", 3)]
    assert len(result.trajectories) == 12


def test_greedy_decoding_makes_one_sample_of_each_prompt() -> None:
    engine = CountingEngine()
    result = evaluation(engine, questions(a="0", b="3"), Settings(DecodingParams(temperature=0), samples=4))
    assert [(r.prompt_id, r.sample_index) for r in engine.requests] == [("a", 0), ("b", 0)]
    assert result.metrics["accuracy"] == 0.5
    assert not [name for name in result.metrics if name.startswith("pass_at")]


def test_responses_whose_reward_failed_are_counted_as_lost_and_as_wrong() -> None:
    result = evaluation(CountingEngine(), questions(a="0", broken="1"), Settings(DecodingParams(), samples=2))
    assert (result.metrics["lost"], result.metrics["responses"]) == (2.0, 2.0)
    assert result.metrics["accuracy"] == 0.25  # one right, one wrong, two lost
    assert result.metrics["pass_at_1"] == 0.25
    assert result.metrics["pass_at_2"] == 0.5
    assert [(t.prompt_id, t.reward is None) for t in result.trajectories] == [
        ("a", False), ("a", False), ("broken", True), ("broken", True)
    ]  # fmt: skip


def test_answers_that_cannot_be_compared_are_counted_and_wrong() -> None:
    # samples answer 0, 1, 2, 3 in no box; Boxes puts them into one
    scorer = Scorer([Length(), Boxes(weight=0.5)], workers=1)
    prompts = questions(a="2", b="1/0")
    result = run_evaluation(CountingEngine(), prompts, scorer, Settings(DecodingParams(), 4), SPEC, TOKENIZER)
    scorer.close()
    assert (result.metrics["reward/incomparable"], result.metrics["lost"]) == (4.0, 0.0)
    assert result.metrics["accuracy"] == result.metrics["reward/boxes"] == 1 / 8
    assert result.metrics["pass_at_4"] == 0.5
    assert len(result.trajectories) == 8


def test_an_evaluation_without_a_reward_that_judges_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"none of the rewards \(length\) says whether .* name one by `correct`"):
        run_evaluation(
            CountingEngine(), questions(a="2"), Scorer([Length()]), Settings(DecodingParams()), SPEC, TOKENIZER
        )


def test_the_seed_of_an_evaluation_decides_its_samples() -> None:
    def seeds(seed: int) -> list[int]:
        engine = CountingEngine()
        evaluation(engine, questions(a="0", b="3"), Settings(DecodingParams(), samples=2, seed=seed))
        return [r.seed for r in engine.requests]

    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_an_evaluation_whose_rewards_all_fail_ends_with_the_reason_and_one_that_had_some_goes_on() -> None:
    with pytest.raises(ValueError, match=r"all 2 responses lost their reward, the first: reward 'right' failed"):
        evaluation(CountingEngine(), questions(broken="1"), Settings(DecodingParams(), samples=2))
    one_at_a_time = Settings(DecodingParams(), samples=2, portion=2)
    result = evaluation(CountingEngine(), questions(a="0", broken="1"), one_at_a_time)
    assert (result.metrics["lost"], result.metrics["accuracy"]) == (2.0, 0.25)
    lost = result.problems[1].responses[0]
    assert (lost.judgement, lost.reward) == ("lost", None) and "'right' failed on prompt_id='broken'" in lost.why
