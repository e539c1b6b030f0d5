"""Collection: engine, rewards, filter and refill turn a stream of prompts into groups with advantages."""

import dataclasses
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from dirl import finite
from dirl.advantages import Advantage, ZScore
from dirl.rewards import RewardSample, Scorer, ScoreReport
from dirl.rollout.engine import RolloutEngine
from dirl.rollout.response import response_text
from dirl.rollout.sample import sample
from dirl.types import DecodingParams, ModelSpec, Prompt, Trajectory, trajectory_from_dict

log = logging.getLogger(__name__)

Group = list[Trajectory]


@dataclass
class Collection:
    """What a collection brought, and what it cost."""

    groups: list[Group]
    surplus: list[Group]
    """Groups beyond the wanted number, for the next collection."""
    sampled: list[Trajectory] = field(default_factory=list)
    """Every trajectory sampled now, those of dropped groups included: the unbiased view of the policy."""
    counts: Counter = field(default_factory=Counter)
    """dropped_uniform, dropped_failed, dropped_stale (groups), rounds, missing (groups short of the wanted number),
    incomparable (responses)."""
    generate_s: float = 0.0
    reward_s: float = 0.0
    """Seconds between the last response and the last reward: workers begin while responses are made."""
    lost: Counter = field(default_factory=Counter)
    """Responses whose reward failed, by prompt id; `sampled` lacks them."""
    steps: list[int] = field(default_factory=list)
    """How many of the prompts that were dealt for it are in each optimizer step; empty: as many in each."""


class Collector:
    """Makes groups of `group_size` trajectories until the wanted number has something to teach.

    Args:
        dynamic_sampling: drop groups of which the advantage says that they teach nothing, by default those whose
            correctness or reward has no spread; refill from further prompts.
        max_rounds: rounds of generation per collection; what is missing after them is counted.
        oversample: prompts asked for per missing group, in expectation of drops; the surplus is kept.
        advantage: None: z-scores.
        seed: part of every request's seed.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        scorer: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        spec: ModelSpec,
        group_size: int,
        dynamic_sampling: bool = False,
        max_rounds: int = 4,
        oversample: float = 1.0,
        advantage: Advantage | None = None,
        seed: int = 0,
    ) -> None:
        self.engine, self.scorer, self.tokenizer, self.spec = engine, scorer, tokenizer, spec
        self.group_size, self.dynamic_sampling, self.max_rounds = group_size, dynamic_sampling, max_rounds
        self.oversample, self.advantage, self.seed = oversample, advantage or ZScore(), seed
        self.advantage.setup(spec)

    def collect(
        self,
        prompts: Iterator[Prompt],
        wanted: int,
        decoding: DecodingParams,
        surplus: Sequence[Group] = (),
        epoch: int = 0,
        finished: Callable[[int], None] = lambda count: None,
        asked: Callable[[int], None] = lambda count: None,
    ) -> Collection:
        """Groups for one epoch, older surplus first.

        Args:
            finished: told of every finished trajectory.
            asked: told, as each round begins, how many it will make.
        """
        result = Collection(groups=list(surplus[:wanted]), surplus=[])
        result.counts["dropped_stale"] = len(surplus[wanted:])
        while len(result.groups) < wanted and result.counts["rounds"] < self.max_rounds:
            result.counts["rounds"] += 1
            made = {group[0].prompt_id for group in (*result.groups, *result.surplus)}
            missing = wanted - len(result.groups)
            batch = distinct(prompts, math.ceil(missing * self.oversample), exclude=made)
            if not batch:
                break
            asked(len(batch) * self.group_size)
            kept = self._round(batch, decoding, (epoch, result.counts["rounds"]), result, finished)
            room = wanted - len(result.groups)
            result.groups += kept[:room]
            result.surplus += kept[room:]
        result.counts["missing"] = wanted - len(result.groups)
        return result

    def _round(
        self,
        by_id: dict[str, Prompt],
        decoding: DecodingParams,
        round_key: tuple[int, int],
        result: Collection,
        finished: Callable[[int], None],
    ) -> list[Group]:
        trajectories, report = self._sample_and_score(by_id, decoding, round_key, result, finished)
        result.lost.update(prompt_id for prompt_id, _ in report.failed)
        self._count_incomparable(report, result)
        groups: dict[str, Group] = defaultdict(list)
        for trajectory in trajectories:
            if trajectory.key not in report.failed:
                scored = report.results[trajectory.key]
                right = self.scorer.correctness.is_right(scored.components)
                trajectory = dataclasses.replace(
                    trajectory, reward=scored.total, rewards=scored.components, correct=right
                )
                result.sampled.append(trajectory)
                groups[trajectory.prompt_id].append(trajectory)
        whole = [self._finish(groups[i]) for i in by_id if len(groups[i]) == self.group_size]
        result.counts["dropped_failed"] += len(by_id) - len(whole)
        if not self.dynamic_sampling:
            return whole
        kept = [group for group in whole if self._teaches(group)]
        result.counts["dropped_uniform"] += len(whole) - len(kept)
        return kept

    def _sample_and_score(
        self,
        by_id: dict[str, Prompt],
        decoding: DecodingParams,
        round_key: tuple[int, int],
        result: Collection,
        finished: Callable[[int], None],
    ) -> tuple[list[Trajectory], ScoreReport]:
        """Every response, in the order in which they finish, and their rewards, which work beside the engine."""
        started = time.perf_counter()
        trajectories = []
        seed = (self.seed, *round_key)
        with self.scorer.scoring() as scoring:
            for trajectory in sample(self.engine, by_id.values(), self.group_size, decoding, seed):
                trajectories.append(trajectory)
                prompt = by_id[trajectory.prompt_id]
                scoring.add(reward_sample(trajectory, prompt, decoding, self.spec, self.tokenizer))
                finished(1)
            generated = time.perf_counter()
            report = scoring.finish()
        result.generate_s += generated - started
        result.reward_s += time.perf_counter() - generated
        if report.failed:
            lost, count, first = len(report.failed), len(trajectories), next(iter(report.failed.values()))
            if lost == count:
                raise ValueError(f"all {count} responses lost their reward, the first: {first}")
            log.warning("%d of %d responses lost their reward, the first: %s", lost, count, first)
        return trajectories, report

    def _teaches(self, group: Group) -> bool:
        degrees = [self.scorer.correctness.degree(t.rewards) for t in group]
        return self.advantage.teaches(group, degrees)

    @staticmethod
    def _count_incomparable(report: ScoreReport, result: Collection) -> None:
        keys = [key for key, scored in report.results.items() if scored.incomparable]
        if keys:
            result.counts["incomparable"] += len(keys)
            log.warning(
                "%d of %d answers could not be compared with the truth and count as wrong, the first: sample %d of %s",
                len(keys), len(report.results), keys[0][1], keys[0][0],
            )  # fmt: skip

    def _finish(self, group: Group) -> Group:
        """Advantages, in the order of the sample index (engines yield in the order of finishing)."""
        group = sorted(group, key=lambda t: t.sample_index)
        advantages = self.advantage(group)
        if len(advantages) != len(group) or finite.first_not_finite(advantages, ""):
            raise ValueError(
                f"rollout.advantage={type(self.advantage).__name__} gave {advantages} for a group of {len(group)}: it "
                "must return one finite number for each trajectory"
            )
        return [dataclasses.replace(t, advantage=a) for t, a in zip(group, advantages, strict=True)]


def distinct(prompts: Iterator[Prompt], count: int, exclude: Set[str] = frozenset()) -> dict[str, Prompt]:
    """Up to `count` next prompts by id, none twice and none of `exclude`; fewer if the data has no others.

    Repetitions occur at the seam of two passes over the data. No id comes more than twice in a row of
    repetitions, so a longer row means that there is nothing else.
    """
    found: dict[str, Prompt] = {}
    repeated = 0
    while len(found) < count and repeated <= 2 * (len(found) + len(exclude)):
        prompt = next(prompts, None)
        if prompt is None:
            break
        if prompt.prompt_id in found or prompt.prompt_id in exclude:
            repeated += 1
        else:
            found[prompt.prompt_id] = prompt
            repeated = 0
    return found


def reward_sample(
    trajectory: Trajectory,
    prompt: Prompt,
    decoding: DecodingParams,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
) -> RewardSample:
    """What a reward may look at: the decoded response up to, without, the stop token."""
    return RewardSample(
        prompt_id=trajectory.prompt_id,
        sample_index=trajectory.sample_index,
        question=prompt.question,
        response=response_text(trajectory, tokenizer),
        ground_truth=prompt.ground_truth,
        response_length=trajectory.response_length,
        denoising_steps=trajectory.denoising_steps(spec.block_size),
        max_response_tokens=decoding.max_response_tokens,
        block_size=spec.block_size,
        info=prompt.info,
    )


def collection_state(collection: Collection) -> dict[str, Any]:
    """A collection as plain containers, for a checkpoint."""
    return {
        "groups": [trajectory_rows(group) for group in collection.groups],
        "surplus": [trajectory_rows(group) for group in collection.surplus],
        "sampled": trajectory_rows(collection.sampled),
        "counts": dict(collection.counts),
        "lost": dict(collection.lost),
        "generate_s": collection.generate_s,
        "reward_s": collection.reward_s,
        "steps": collection.steps,
    }


def collection_from_state(state: dict[str, Any]) -> Collection:
    """The inverse of `collection_state`."""
    groups, surplus = ([trajectories(rows) for rows in state[name]] for name in ("groups", "surplus"))
    times = {name: state[name] for name in ("generate_s", "reward_s")}
    counts, lost = Counter(state["counts"]), Counter(state["lost"])
    made = Collection(groups, surplus, trajectories(state["sampled"]), counts, lost=lost, **times)
    made.steps = list(state["steps"])
    return made


def trajectory_rows(group: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Trajectories as plain containers."""
    return [dict(vars(trajectory)) for trajectory in group]  # `asdict` would copy every token


def trajectories(rows: Sequence[dict[str, Any]]) -> list[Trajectory]:
    """The inverse of `trajectory_rows`."""
    return [trajectory_from_dict(row) for row in rows]
