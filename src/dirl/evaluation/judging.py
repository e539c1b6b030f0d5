"""Responses to prompts, each with its verdict: what an engine samples and the rewards say of it."""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from dirl.evaluation.problems import Judgement, Problem, Response
from dirl.rewards import RewardSample, Scorer, ScoreReport
from dirl.rl.collector import reward_sample
from dirl.rollout.engine import RolloutEngine
from dirl.rollout.sample import sample
from dirl.types import DecodingParams, ModelSpec, Prompt, Trajectory

NOT_COMPARED = "the answer cannot be compared with the truth"


class Judge:
    """Samples and scores.

    Args:
        engine: with its weights.
        scorer: says what is correct; a reward that fails is handed back, or raised, as it was made to do.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        scorer: Scorer,
        decoding: DecodingParams,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.engine, self.scorer, self.decoding, self.spec, self.tokenizer = engine, scorer, decoding, spec, tokenizer
        correct = scorer.correctness.name
        self.asked = next(reward for reward in scorer.rewards if reward.name == correct)

    def answer(
        self, prompts: Sequence[Prompt], count: int, seed: int, finished: Callable[[int], None]
    ) -> tuple[list[Problem], list[Trajectory]]:
        """`count` responses to each prompt, in its order.

        Args:
            finished: told of every finished response.
        """
        started = time.perf_counter()
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        samples: list[RewardSample] = []
        made: list[Trajectory] = []
        with self.scorer.scoring() as scoring:
            for trajectory in sample(self.engine, prompts, count, self.decoding, (seed, 0, 1)):
                prompt = by_id[trajectory.prompt_id]
                each = reward_sample(trajectory, prompt, self.decoding, self.spec, self.tokenizer)
                scoring.add(each)
                samples.append(each)
                made.append(trajectory)
                finished(1)
            generated = time.perf_counter()
            report = scoring.finish()
        scored = time.perf_counter()
        shares = (generated - started) / len(prompts), (scored - generated) / len(prompts)
        responses: dict[str, list[Response]] = defaultdict(list)
        for each, trajectory in sorted(zip(samples, made, strict=True), key=lambda pair: pair[0].sample_index):
            responses[each.prompt_id].append(self._response(each, trajectory, report))
        problems = [
            Problem(p.prompt_id, p.question, p.ground_truth, tuple(responses[p.prompt_id]), *shares) for p in prompts
        ]
        order = {prompt.prompt_id: number for number, prompt in enumerate(prompts)}
        made.sort(key=lambda t: (order[t.prompt_id], t.sample_index))
        return problems, [self._scored(trajectory, report) for trajectory in made]

    def _response(self, sample: RewardSample, trajectory: Trajectory, report: ScoreReport) -> Response:
        result = report.results.get(sample.key)
        judgement, why = self._judgement(sample, report)
        return Response(
            sample_index=sample.sample_index,
            text=sample.response,
            judgement=judgement,
            tokens=sample.response_length,
            steps=sample.denoising_steps,
            finish_reason=trajectory.finish_reason,
            answer=self.asked.answer(sample.response) if self.asked.votes else None,
            reward=None if result is None else result.total,
            rewards={} if result is None else result.components,
            why=why,
        )

    def _judgement(self, sample: RewardSample, report: ScoreReport) -> tuple[Judgement, str | None]:
        if sample.key in report.failed:
            return "lost", str(report.failed[sample.key]).splitlines()[0]
        result = report.results[sample.key]
        if self.scorer.correctness.is_right(result.components):
            return "right", None
        return ("incomparable", NOT_COMPARED) if result.incomparable else ("wrong", None)

    def _scored(self, trajectory: Trajectory, report: ScoreReport) -> Trajectory:
        result = report.results.get(trajectory.key)
        if result is None:
            return trajectory
        right = self.scorer.correctness.is_right(result.components)
        return dataclasses.replace(trajectory, reward=result.total, rewards=result.components, correct=right)
