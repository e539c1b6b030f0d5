"""Samples are scored while others are still being made, and the report is the one of a call with all of them."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

import pytest
from tests.unit.rewards.misbehaving import LeavesANote, Obedient, Patient, WhereAmI
from tests.unit.rewards.samples import sample

from dirl.evaluation.judging import Judge
from dirl.models.tokenizer import new_tokenizer
from dirl.rewards import Boxed, Reward, RewardError, RewardSample, Scorer
from dirl.rl.collector import Collector
from dirl.rollout import RolloutEngine
from dirl.types import DecodingParams, ModelSpec, Prompt, Trajectory

PATIENCE_S = 60.0
TOKENIZER = new_tokenizer("0123456789x")
SPEC = ModelSpec(4, TOKENIZER.mask_token_id, (TOKENIZER.eos_token_id,), TOKENIZER.pad_token_id, len(TOKENIZER))


class Thread(Reward):
    """The thread that evaluates it."""

    in_process = True

    def __call__(self, sample: RewardSample) -> float:
        return float(threading.get_ident())


class Number(Reward):
    in_process = True

    def __call__(self, sample: RewardSample) -> float:
        raise OSError(sample.response)


def wait_for(path: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < until, "no worker has been asked yet"
        time.sleep(0.01)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "rewards"]


def test_workers_begin_before_the_last_sample_is_there(tmp_path: Path) -> None:
    with Scorer([LeavesANote()]) as scorer, scorer.scoring() as scoring:
        for i in range(3):
            scoring.add(sample(index=i, question=str(tmp_path / str(i))))
            wait_for(tmp_path / str(i))
        assert list(scoring.finish().results) == [("p", i) for i in range(3)]
        assert threads() == []


def test_the_report_is_that_of_a_call_with_all_samples() -> None:
    responses = ["1", "nan", "3", "exit", "raise", "text", *map(str, range(50))]
    samples = [sample(response, index=i) for i, response in enumerate(responses)]
    with Scorer([Obedient(), Boxed()], on_error="drop_group") as scorer:
        whole = scorer.score(samples)
        with scorer.scoring() as scoring:
            for number, each in enumerate(samples):
                scoring.add(each)
                time.sleep(0.1 * (number % 20 == 0))  # some are there together, others alone
            found = scoring.finish()
    assert found.results == whole.results and list(found.results) == list(whole.results)
    assert {key: str(error) for key, error in found.failed.items()} == {k: str(e) for k, e in whole.failed.items()}
    assert len(found.failed) == 4


def test_an_error_comes_at_the_end_and_the_next_round_has_its_own_results() -> None:
    with Scorer([Obedient()]) as scorer:
        with scorer.scoring() as scoring:
            for i, response in enumerate(["raise", "2"]):
                scoring.add(sample(response, index=i))
            with pytest.raises(RewardError, match="sample_index=0: ZeroDivisionError"):
                scoring.finish()
        with scorer.scoring() as scoring:
            scoring.add(sample("5"))
            assert scoring.finish().results["p", 0].total == 5.0


def test_whoever_leaves_early_leaves_no_thread_and_no_worker_behind(tmp_path: Path) -> None:
    started = time.monotonic()
    with Scorer([LeavesANote(), Patient()]) as scorer:
        with pytest.raises(KeyboardInterrupt), scorer.scoring() as scoring:
            scoring.add(sample("60", question=str(tmp_path / "note")))
            wait_for(tmp_path / "note")
            raise KeyboardInterrupt
        assert threads() == [] and scorer._pool._crew == []
        assert scorer.score([sample("0", question=str(tmp_path / "note"))]).results["p", 0].total == 2.0
    assert time.monotonic() - started < 50


def test_a_run_that_ends_ends_the_wait_for_workers(tmp_path: Path) -> None:
    def still_wanted() -> None:
        if (tmp_path / "note").exists():
            raise SystemExit(143)

    with Scorer([LeavesANote(), Patient()], timeout_s=100.0) as scorer:
        scorer.ask(still_wanted)
        with scorer.scoring() as scoring, pytest.raises(SystemExit, match="143"):
            scoring.add(sample("60", question=str(tmp_path / "note")))
            scoring.finish()


def test_an_interrupted_wait_leaves_nothing_that_answers_the_next_round(tmp_path: Path) -> None:
    """`Thread.join`, interrupted, takes a thread for ended: the round went on, and its results were the next one's."""

    def interrupt() -> None:
        wait_for(tmp_path / "note")
        os.kill(os.getpid(), signal.SIGUSR2)

    def handle(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, handle)  # of SIGINT other tests may have another opinion
    with Scorer([LeavesANote(), Patient(name="patient")], workers=1, timeout_s=100.0) as scorer:
        with pytest.raises(KeyboardInterrupt), scorer.scoring() as scoring:
            scoring.add(sample("60", question=str(tmp_path / "note")))
            scoring.add(sample("60", index=1, question=str(tmp_path / "note")))
            threading.Thread(target=interrupt, daemon=True).start()
            scoring.finish()
        signal.signal(signal.SIGUSR2, before)
        assert threads() == [] and scorer._pool._crew == []
        with scorer.scoring() as scoring:
            scoring.add(sample("0", index=1, question=str(tmp_path / "other")))
            assert list(scoring.finish().results) == [("p", 1)]


def test_the_first_error_ends_the_round(tmp_path: Path) -> None:
    """With `raise`, whether it comes from a worker or from this process; the others would take a minute each."""
    started = time.monotonic()
    for rewards, response in (([Obedient()], "raise"), ([Patient(), Number()], "60")):
        with Scorer(rewards, timeout_s=100.0) as scorer, scorer.scoring() as scoring:
            for i in range(6):
                scoring.add(sample("hang" if response == "raise" and i else response, index=i))
            with pytest.raises(RewardError, match="sample_index=0"):
                scoring.finish()
    assert time.monotonic() - started < 50


def test_workers_that_end_at_rest_are_replaced_however_many() -> None:
    with Scorer([Patient()], workers=4) as scorer:
        scorer.score([sample("0.2", index=i) for i in range(8)])
        crew = list(scorer._pool._crew)
        assert len(crew) == 4
        for worker in crew:
            worker.kill()
        assert len(scorer.score([sample("0", index=i) for i in range(8)]).results) == 8


def test_rewards_of_this_process_run_at_the_end_in_this_thread_and_start_no_other() -> None:
    with Scorer([Thread()]) as scorer, scorer.scoring() as scoring:
        scoring.add(sample())
        assert threads() == []
        assert scoring.finish().results["p", 0].total == threading.get_ident()


def test_a_sample_that_is_added_twice_is_refused() -> None:
    with Scorer([WhereAmI()]) as scorer, scorer.scoring() as scoring:
        scoring.add(sample())
        scoring.add(sample())
        with pytest.raises(ValueError, match=r"repeat the key \('p', 0\)"):
            scoring.finish()


class Listening(RolloutEngine):
    """Makes a response only when the one before has been scored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, *args: object) -> None: ...

    def update_weights(self, *args: object) -> None: ...

    def generate(self, requests, decoding):
        for request in requests:
            ids = (*TOKENIZER("12", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id, 5)
            steps, logprobs = (1,) * 4, (-0.5,) * 4
            yield Trajectory(
                request.prompt_id, request.sample_index, request.prompt_ids, ids, 3, steps, logprobs, "stop", 0
            )
            wait_for(self.folder / request.prompt_id)


@pytest.mark.parametrize("who", ["collector", "judge"])
def test_a_rollout_and_an_evaluation_score_while_the_engine_works(who: str, tmp_path: Path) -> None:
    prompts = [Prompt(str(n), (1, 2, 3, 4), str(tmp_path / str(n)), "truth") for n in range(3)]
    with Scorer([LeavesANote()]) as scorer:
        if who == "judge":
            problems, _ = Judge(Listening(tmp_path), scorer, DecodingParams(), SPEC, TOKENIZER).answer(
                prompts, 2, 0, lambda count: None
            )
            assert [[r.judgement for r in problem.responses] for problem in problems] == [["right", "right"]] * 3
        else:
            collector = Collector(Listening(tmp_path), scorer, TOKENIZER, SPEC, 2)
            groups = collector.collect(iter(prompts), 3, DecodingParams()).groups
            assert [[t.reward for t in group] for group in groups] == [[1.0, 1.0]] * 3
