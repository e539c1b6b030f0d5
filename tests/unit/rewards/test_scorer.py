"""The scorer: sums, keys, errors; and its processes, which hang, die and are replaced."""

import os
import random
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from tests.unit.rewards import misbehaving
from tests.unit.rewards.misbehaving import CountsCharacters, Obedient, Patient
from tests.unit.rewards.samples import RIGHT, WRONG, sample

from dirl.rewards import Accuracy, Boxed, Length, Repetition, RewardError, RewardSample, Scorer, SoftOverlong
from dirl.rewards.pool import Job, Outcome, WorkerPool


def told(*responses: str) -> list[RewardSample]:
    return [sample(response, index=i, question=f"question {i}") for i, response in enumerate(responses)]


def test_the_total_is_the_weighted_sum_and_components_are_unweighted():
    rewards = [CountsCharacters("o", weight=2.0), Length(weight=-1.0), Boxed(weight=0.5, name="box")]
    with Scorer(rewards) as scorer:
        result = scorer.score([sample(RIGHT, length=25)]).results["p", 0]
    assert result.key == ("p", 0)
    assert result.components == {"counts_characters": 2.0, "length": 0.25, "box": 0.1}
    assert list(result.components) == ["counts_characters", "length", "box"]
    assert result.total == pytest.approx(4.0 - 0.25 + 0.05)


def test_rewards_follow_keys_and_not_positions():
    samples = [sample(str(n), prompt_id=f"p{n // 8}", index=n % 8) for n in range(96)]
    expected = {(f"p{n // 8}", n % 8): float(n) for n in range(96)}
    with Scorer([Obedient()]) as scorer:
        first = scorer.score(samples).results
        shuffled = random.Random(0).sample(samples, len(samples))
        second = scorer.score(shuffled).results
    assert {key: result.total for key, result in first.items()} == expected
    assert second == first
    assert list(second) == [s.key for s in shuffled]


def test_a_key_may_occur_only_once():
    scorer = Scorer([Boxed()])
    with pytest.raises(ValueError, match=r"repeat the key \('p', 1\)"):
        scorer.score([sample(RIGHT, index=1), sample(WRONG, index=1)])


def test_no_samples_give_an_empty_report_and_start_no_process():
    scorer = Scorer([Accuracy()])
    report = scorer.score([])
    assert (report.results, report.failed) == ({}, {})
    assert scorer._pool._crew == []


def test_in_process_rewards_start_no_process():
    scorer = Scorer([Boxed(), Repetition()])
    assert scorer.score([sample(RIGHT)]).results["p", 0].total == pytest.approx(0.1)
    assert scorer._pool._crew == []


@pytest.mark.parametrize(
    ("response", "cause"),
    [
        ("raise", "ZeroDivisionError: division by zero"),
        ("exit", r"it ended its worker process \(exit code 7\), twice"),
        ("quit", "SystemExit: 3"),
        ("nan", "returned nan"),
        ("infinite", "returned inf"),
        ("text", r"returned '1.0' \(str\)"),
        ("nothing", "returned None"),
    ],
)
def test_a_failing_reward_names_itself_its_sample_and_the_cause(response, cause):
    with Scorer([Obedient(name="mine")]) as scorer, pytest.raises(RewardError, match=cause) as caught:
        scorer.score([sample(response, prompt_id="p7", index=3, question="why?")])
    message = str(caught.value)
    assert (caught.value.reward, caught.value.key) == ("mine", ("p7", 3))
    assert all(part in message for part in ("'mine'", "'p7'", "sample_index=3", "'why?'", repr(response)))


def test_the_error_of_a_worker_shows_where_it_was_raised_and_cuts_long_texts():
    question = "begin" + "x" * 5000 + "end"
    with Scorer([Obedient()]) as scorer, pytest.raises(RewardError) as caught:
        scorer.score([sample("raise", question=question)])
    assert "misbehaving.py" in str(caught.value)
    assert "begin" in str(caught.value) and "end" in str(caught.value) and "x" * 400 not in str(caught.value)


def test_an_in_process_reward_that_raises_is_an_error_with_its_cause():
    scorer = Scorer([SoftOverlong(cache=500)])
    with pytest.raises(RewardError, match=r"'soft_overlong' failed on prompt_id='p'.*cache=500") as caught:
        scorer.score([sample()])
    assert isinstance(caught.value.__cause__, ValueError)


def test_drop_group_hands_back_the_failed_and_scores_the_others():
    bad = {3: "raise", 10: "exit", 11: "nan", 12: "exit", 20: "hang", 39: "exit"}
    samples = told(*(bad.get(i, str(i)) for i in range(40)))
    with Scorer([Obedient(), Boxed()], timeout_s=1.0, on_error="drop_group") as scorer:
        report = scorer.score(samples)
        assert list(report.failed) == [("p", i) for i in bad]
        assert {key: r.components["obedient"] for key, r in report.results.items()} == {
            ("p", i): float(i) for i in range(40) if i not in bad
        }
        assert "no result within 1 s" in str(report.failed["p", 20])
        assert "exit code 7" in str(report.failed["p", 39])
        assert scorer.score(told("5")).results["p", 0].total == 5.0  # and it goes on


def test_an_in_process_failure_is_dropped_alike_and_only_once():
    with Scorer([SoftOverlong(cache=50), Obedient()], on_error="drop_group") as scorer:
        report = scorer.score([sample("nan", limit=10), sample("1", index=1)])
    assert list(report.failed) == [("p", 0)]
    assert report.failed["p", 0].reward == "soft_overlong"
    assert list(report.results) == [("p", 1)]


def test_a_hanging_reward_is_cut_off_and_named_even_behind_others():
    start = time.monotonic()
    blamed = r"'mine' failed on prompt_id='p' sample_index=2: no result within 1 s"
    rewards = [CountsCharacters("x"), Obedient(name="mine")]
    with Scorer(rewards, workers=1, timeout_s=1.0) as scorer, pytest.raises(RewardError, match=blamed):
        scorer.score(told("1", "2", "hang", "3"))
    assert time.monotonic() - start < 15.0  # the hang is of 60 s


def test_the_limit_is_for_each_sample_and_not_for_its_chunk():
    with Scorer([Patient()], workers=1, timeout_s=1.0) as scorer:
        assert len(scorer.score(told("0.6", "0.6", "0", "0", "0")).results) == 5  # the first two are one chunk
        assert scorer._pool._crew[0].idle


def test_a_result_that_arrives_with_the_limit_is_kept_and_its_neighbour_not_blamed():
    pool = WorkerPool([Patient()], workers=1, timeout_s=10.0)
    pool._hire(1)
    worker = pool._crew[0]
    worker.receive()  # ready
    worker.give([Job(i, patient, (0,)) for i, patient in enumerate(told("0", "60"))])
    worker.receive()  # received
    assert worker.connection.poll(10.0)  # the first has a result, unread
    pending = deque([Job(2, sample(index=2), (0,))])
    assert list(pool._lose(worker, pending, hung=True)) == [Outcome(0, 0, 1.0, None)]
    assert [job.position for job in pending] == [1, 2]


def test_loading_is_not_charged_to_a_sample():
    with Scorer([misbehaving.SlowToLoad()], timeout_s=1.0) as scorer:
        assert scorer.score([sample()]).results["p", 0].total == 1.0


def test_after_an_error_the_next_call_gets_its_own_results():
    with Scorer([Obedient()], workers=2, timeout_s=5.0) as scorer:
        with pytest.raises(RewardError):
            scorer.score(told("raise", *(str(i) for i in range(30))))
        report = scorer.score(told("100", "101"))
    assert [result.total for result in report.results.values()] == [100.0, 101.0]


def test_workers_run_at_the_same_time_and_are_kept():
    with Scorer([misbehaving.WhereAmI(), Patient()], workers=2) as scorer:
        places = [{r.components["where_am_i"] for r in scorer.score(told(*["0.2"] * 6)).results.values()} for _ in "ab"]
    assert len(places[0]) == 2 and places[0] == places[1]
    assert os.getpid() not in places[0]


def test_a_worker_that_died_between_two_calls_is_replaced():
    with Scorer([Obedient()], workers=1) as scorer:
        scorer.score(told("1"))
        worker = scorer._pool._crew[0]
        worker.kill()
        assert scorer.score(told("2")).results["p", 0].total == 2.0
        assert scorer._pool._crew[0] is not worker


def test_rewards_that_cannot_be_loaded_are_an_error_whatever_the_mode():
    with pytest.raises(RuntimeError, match=r"(?s)could not load the rewards.*no such model"):
        Scorer([misbehaving.NeverLoads()], on_error="drop_group").score([sample()])
    with pytest.raises(RuntimeError, match=r"3 reward workers in a row .* exit code 9"):
        Scorer([misbehaving.DiesAtRest()], on_error="drop_group").score([sample()])


def test_a_killed_worker_takes_what_it_started_with_it(tmp_path):
    file = tmp_path / "child"
    with Scorer([misbehaving.LeavesAChild()], timeout_s=1.5, on_error="drop_group") as scorer:
        scorer.score([sample(question=str(file))])
    wait_for_the_end_of(int(file.read_text()))


def test_workers_import_no_torch():
    with Scorer([misbehaving.HasTorch(), Accuracy()]) as scorer:
        assert scorer.score([sample(RIGHT)]).results["p", 0].components == {"has_torch": 0.0, "accuracy": 1.0}


def test_workers_end_with_a_parent_that_is_killed_even_while_they_hang():
    program = """if True:
        import os, signal, threading
        from dirl.rewards import Scorer
        from tests.unit.rewards.misbehaving import Obedient
        from tests.unit.rewards.samples import sample
        scorer = Scorer([Obedient()], workers=1, timeout_s=60)
        scorer.score([sample("1")])
        print(scorer._pool._crew[0]._process.pid, flush=True)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        scorer.score([sample("hang")])
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30
    )
    assert parent.returncode == -9, parent.stderr
    wait_for_the_end_of(int(parent.stdout))


def wait_for_the_end_of(process: int) -> None:
    """Fail unless the process is gone, or a zombie that nobody has reaped, within some seconds."""
    status = Path(f"/proc/{process}/stat")
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} is still there")


def test_a_users_class_comes_by_class_path_with_its_arguments():
    parser = ArgumentParser()
    parser.add_class_arguments(Scorer, "scorer")
    config = {
        "rewards": [
            {"class_path": "dirl.rewards.SoftOverlong", "init_args": {"cache": 20, "weight": 0.5}},
            {"class_path": "tests.unit.rewards.misbehaving.CountsCharacters", "init_args": {"letter": "e", "scale": 2}},
        ],
        "on_error": "drop_group",
    }
    with parser.instantiate(parser.parse_object({"scorer": config})).scorer as scorer:
        result = scorer.score([sample("eleven", length=90)]).results["p", 0]
    assert result.components == {"soft_overlong": -0.5, "counts_characters": 6.0}
    assert result.total == 5.75


def test_a_reward_that_no_worker_could_import_is_refused():
    class Local(Obedient):
        pass

    with pytest.raises(ValueError, match="Local cannot be sent to worker processes"):
        Scorer([Local()])
    class_of_main = type("InMain", (Obedient,), {"__module__": "__main__"})
    with pytest.raises(ValueError, match="defined in the main script"):
        Scorer([class_of_main()])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="rewards is empty"):
        Scorer([])
    with pytest.raises(ValueError, match="two rewards have the name 'boxed'"):
        Scorer([Boxed(), Accuracy(name="boxed")])
    with pytest.raises(ValueError, match="name 'incomparable'"):
        Scorer([Boxed(name="incomparable")])
    with pytest.raises(ValueError, match="must be a subclass"):
        Scorer([len])
    with pytest.raises(ValueError, match="no weight or name"):
        Scorer([misbehaving.Forgetful()])
    for limit in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout_s="):
            Scorer([Boxed()], timeout_s=limit)
    with pytest.raises(ValueError, match="workers=0"):
        Scorer([Boxed()], workers=0)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        Scorer([Boxed()], on_error="ignore")


def test_a_second_reward_of_one_class_needs_a_name_only():
    rewards = [CountsCharacters("a", name="a"), CountsCharacters("b", name="b")]
    with Scorer(rewards) as scorer:
        assert scorer.score([sample("abb")]).results["p", 0].components == {"a": 1.0, "b": 2.0}
