"""Rewards of reasoning-gym: an answer is judged by the generator of its question."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from dirl.rewards.base import Incomparable, Reward, RewardSample
from dirl.rewards.math_answers import last_boxed

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

INFO = "reasoning_gym"
"""Key in `RewardSample.info` of the `Entry` that was asked, as a mapping."""


@dataclass(frozen=True)
class Entry:
    """One question: by the same options, seed and size the generator makes the same one at an index."""

    generator: str
    options: tuple[tuple[str, Any], ...]
    seed: int
    size: int
    index: int

    @classmethod
    def of(cls, sample: RewardSample) -> "Entry":
        info = sample.info.get(INFO)
        if not isinstance(info, Mapping) or set(info) != {field.name for field in fields(cls)}:
            raise ValueError(
                f"info[{INFO!r}]={info!r} is no entry of reasoning-gym: this reward is for prompts of the task "
                "dirl.tasks.ReasoningGym"
            )
        return cls(**(dict(info) | {"options": options_key(info["options"])}))


class ReasoningGym(Reward):
    r"""1 if what the last \boxed{} holds gets the full score of the question's generator, else 0.

    An answer that the generator's own scorer fails on cannot be compared: 0, and counted. A response that was cut is
    judged as any other.
    """

    judges: ClassVar[bool | None] = True
    cpu_limit_s: ClassVar[float | None] = 3.0

    def prepare(self) -> None:
        load()

    def if_incomparable(self, sample: RewardSample) -> float:
        return 0.0

    def __call__(self, sample: RewardSample) -> float:
        found = score(sample)
        return found if isinstance(found, Incomparable) else float(found >= 1.0)


class ReasoningGymScore(ReasoningGym):
    """The generator's own score, 0 to 1: many give a part for an answer that is nearly right, or of the right form.

    It does not say what is correct: name `dirl.rewards.ReasoningGym` beside it, with weight 0 if it is not to count.
    """

    judges: ClassVar[bool | None] = False

    def __call__(self, sample: RewardSample) -> float:
        return score(sample)


def score(sample: RewardSample) -> float:
    """The score of the boxed answer; 0 without one."""
    wanted = Entry.of(sample)
    dataset = dataset_of(wanted.generator, wanted.options, wanted.seed, wanted.size)
    answer, asked = last_boxed(sample.response), entry_of(wanted)
    if answer is None:
        return 0.0
    try:
        return float(dataset.score_answer(answer, asked))
    except Exception:
        # Scorers parse what a model wrote, each in its own way: what they raise says that they could not. One that
        # cannot judge the right answer either is broken, and raises here.
        if isinstance(asked["answer"], str):
            dataset.score_answer(asked["answer"], asked)
        return Incomparable(0.0)


@lru_cache(maxsize=4096)
def entry_of(entry: Entry) -> dict[str, Any]:
    return dataset_of(entry.generator, entry.options, entry.seed, entry.size)[entry.index]


@lru_cache(maxsize=16)
def dataset_of(generator: str, options: tuple[tuple[str, Any], ...], seed: int, size: int) -> "ProceduralDataset":
    """The questions of a generator; ValueError for a generator or options that it does not have."""
    load()
    from reasoning_gym.factory import DATASETS, create_dataset

    if generator not in DATASETS:
        raise ValueError(f"task.generator={generator!r} is none of reasoning-gym's: {', '.join(sorted(DATASETS))}")
    try:
        return create_dataset(generator, seed=seed, size=size, **{name: _plain(value) for name, value in options})
    except (TypeError, ValueError, AssertionError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"task.options={dict(options)} are not for generator {generator!r}: {cause}") from error


def load() -> None:
    """Import reasoning-gym; ValueError that says how to get it."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError("reasoning-gym is not installed: pip install 'dirl[reasoning-gym]'")
    import reasoning_gym  # noqa: F401


def options_key(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options as a key: lists become tuples."""
    return tuple(sorted((name, _frozen(value)) for name, value in options.items()))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, tuple) else value
