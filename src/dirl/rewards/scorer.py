"""Scoring: every reward of every sample, by key, with errors raised or handed back."""

import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

from dirl.rewards.base import Incomparable, Reward, RewardSample
from dirl.rewards.call import RewardError, call_reward, summary
from dirl.rewards.correctness import Correctness, correctness
from dirl.rewards.feed import Feed
from dirl.rewards.pool import Outcome, WorkerPool
from dirl.rewards.scoring import Scoring

Key = tuple[str, int]
OnError = Literal["raise", "drop_group"]


@dataclass(frozen=True)
class RewardResult:
    """`components` are unweighted, by the rewards' names; `total` is their weighted sum."""

    key: Key
    total: float
    components: dict[str, float]
    incomparable: bool = False
    """Whether an answer could not be compared with the truth; it counted as wrong."""


@dataclass(frozen=True)
class ScoreReport:
    """Each sample's key is in exactly one of the two, in the order of the samples."""

    results: dict[Key, RewardResult]
    failed: dict[Key, RewardError]
    """Always empty with on_error="raise"."""


class Scorer:
    """Scores samples with a weighted sum of rewards.

    Rewards marked `in_process` run inline, the others in worker processes, which are started at the first use
    and kept. What a reward raises, a hang, a worker that died twice, and a value that is no finite number are errors,
    but of comparisons of answers a hang and a death are verdicts: incomparable, and so wrong.

    Args:
        rewards: with distinct names.
        workers: processes for the rewards that are not `in_process`.
        timeout_s: seconds that these rewards together may take for one sample; then its process is killed.
        on_error: `raise` stops at the first error; `drop_group` hands them back in `ScoreReport.failed`, for the
            caller to drop and count the groups concerned.
        correct: name of the reward that is above 0 for a correct response; None: the first that judges.
    """

    def __init__(
        self,
        rewards: list[Reward],
        workers: int = 2,
        timeout_s: float = 10.0,
        on_error: OnError = "raise",
        correct: str | None = None,
    ) -> None:
        _check_rewards(rewards)
        if workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s={timeout_s} must be a positive number of seconds")
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error={on_error!r} must be one of {get_args(OnError)}")
        _check_time(rewards, timeout_s)
        self.rewards = list(rewards)
        self._inline = [reward for reward in rewards if reward.in_process]
        self._remote = [reward for reward in rewards if not reward.in_process]
        self._pool = WorkerPool(self._remote, workers, timeout_s)
        self._on_error, self._correct = on_error, correct
        for reward in self._inline:
            reward.prepare()

    def score(self, samples: Sequence[RewardSample]) -> ScoreReport:
        """Rewards of all samples; their keys must be distinct."""
        return self._report(samples, None)

    def scoring(self) -> Scoring[ScoreReport]:
        """Score samples while others are still being made; see there."""
        return Scoring(self._pool if self._remote else None, self._report, self._on_error == "raise")

    def _report(self, samples: Sequence[RewardSample], found: Iterable[Outcome] | None) -> ScoreReport:
        """`found`: what workers have found of each sample, by its position; None: they have not been asked yet."""
        repeated = [key for key, count in Counter(sample.key for sample in samples).items() if count > 1]
        if repeated:
            raise ValueError(
                f"samples repeat the key {repeated[0]}; (prompt_id, sample_index) must identify a response"
            )
        values: dict[Key, dict[str, float]] = {sample.key: {} for sample in samples}
        failed: dict[Key, RewardError] = {}
        for reward, sample, value in self._values(samples, failed, found):
            values[sample.key][reward.name] = value
        return ScoreReport(
            results={key: self._result(key, values[key]) for key in values if key not in failed},
            failed={key: failed[key] for key in values if key in failed},
        )

    @property
    def correctness(self) -> Correctness:
        """What says whether a response is correct; ValueError if no reward does."""
        return correctness(self.rewards, self._correct)

    def ask(self, still_wanted: Callable[[], None]) -> None:
        """Have this called a few times a second while workers score: it raises what ends that."""
        self._pool.still_wanted = still_wanted

    def close(self) -> None:
        """End the worker processes; scoring again starts new ones."""
        self._pool.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _values(
        self, samples: Sequence[RewardSample], failed: dict[Key, RewardError], found: Iterable[Outcome] | None
    ) -> Iterator[tuple[Reward, RewardSample, float]]:
        """Each reward of each sample, in any order; failures are raised or put into `failed`."""
        for sample in samples:
            for reward in self._inline:
                try:
                    value = call_reward(reward, sample)
                except Exception as cause:
                    error = RewardError.of(reward, sample, summary(cause))
                    error.__cause__ = cause
                    self._fail(error, failed)
                    break
                yield reward, sample, value
        if found is not None:
            yield from self._read(samples, (each for each in found if samples[each.position].key not in failed), failed)
            return
        rest = [sample for sample in samples if sample.key not in failed] if self._remote else []
        with closing(self._pool.run(Feed(rest).end())) as outcomes:
            yield from self._read(rest, outcomes, failed)

    def _read(
        self, samples: Sequence[RewardSample], outcomes: Iterable[Outcome], failed: dict[Key, RewardError]
    ) -> Iterator[tuple[Reward, RewardSample, float]]:
        """What workers found; failures are raised or put into `failed`."""
        for position, number, value, problem in outcomes:
            reward, sample = self._remote[number], samples[position]
            if problem is None:
                assert value is not None, "an outcome has a value or a problem"
                yield reward, sample, value
            else:
                said, _, details = problem.partition("\n")
                self._fail(RewardError.of(reward, sample, said, details), failed)

    def _fail(self, error: RewardError, failed: dict[Key, RewardError]) -> None:
        if self._on_error == "raise":
            raise error
        failed[error.key] = error

    def _result(self, key: Key, values: dict[str, float]) -> RewardResult:
        components = {reward.name: float(values[reward.name]) for reward in self.rewards}
        total = math.fsum(r.weight * components[r.name] for r in self.rewards)
        return RewardResult(key, total, components, any(isinstance(v, Incomparable) for v in values.values()))


def _check_rewards(rewards: Sequence[Reward]) -> None:
    if not rewards:
        raise ValueError("rewards is empty; name at least one reward")
    for reward in rewards:
        kind = f"{type(reward).__module__}.{type(reward).__qualname__}"
        if not isinstance(reward, Reward):
            raise ValueError(f"rewards holds {reward!r} ({kind}); it must be a subclass of dirl.rewards.Reward")
        if not hasattr(reward, "weight") or not hasattr(reward, "name"):
            raise ValueError(
                f"reward {kind} has no weight or name; call super().__init__(weight, name) in its __init__"
            )
        if not reward.in_process:
            _check_sendable(reward, kind)
    if any(reward.name == "incomparable" for reward in rewards):
        raise ValueError(
            "a reward has the name 'incomparable', which is that of a count in the logs; rename it by `name`"
        )
    repeated = [name for name, count in Counter(reward.name for reward in rewards).items() if count > 1]
    if repeated:
        raise ValueError(f"two rewards have the name {repeated[0]!r}; give one of them another by `name`")


def _check_time(rewards: Sequence[Reward], timeout_s: float) -> None:
    """Raise ValueError if a reward may need longer than it is given: it would be an error where it has a verdict."""
    slow = next((reward for reward in rewards if reward.takes_s > timeout_s), None)
    if slow is not None:
        raise ValueError(
            f"reward {slow.name!r} may take {slow.takes_s:g} s for a sample, timeout_s={timeout_s:g} ends it before: "
            "raise reward_timeout_s, or lower the reward's own limit"
        )


def _check_sendable(reward: Reward, kind: str) -> None:
    """Raise ValueError if a worker process could not be sent this reward."""
    if type(reward).__module__ == "__main__":
        raise ValueError(f"reward {kind} is defined in the main script; put it into a module that workers can import")
    try:
        pickle.dumps(reward)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"reward {kind} cannot be sent to worker processes: {error}; define the class at the top level of a "
            "module and keep what cannot be pickled out of it, or set in_process = True"
        ) from error
