"""What responses are like: accuracy, pass@k, maj@k, rewards by name, tokens per denoising step, length, truncation."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import comb
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from torch import nn

from dirl.evaluation.problems import Problem, Response
from dirl.evaluation.votes import ballot, maj_at_k, voted_ks
from dirl.types import Trajectory

if TYPE_CHECKING:
    from dirl.evaluation.problem_means import Parts

Votes = Literal["value", "text"]


class ResponseMetrics(nn.Module):
    """torchmetrics over scored responses; `compute` agrees on all ranks, to the bit for every number of them.

    A response that has lost its reward is wrong; it is part of accuracy, pass@k and maj@k, not of the other metrics.

    Args:
        reward_names: components to report.
        block_size: B, for the count of denoising steps.
        pass_at: the k of pass@k and maj@k; those beyond the samples of a prompt are left out.
        correct: the component that is above 0 for a correct response; None: the first.
        votes: how the reward that says what is correct has answers (`Reward.votes`); None: no maj@k.
        resamples: of the bootstrap over problems; 0: no intervals.
        seed: of the resamples.
    """

    def __init__(
        self,
        reward_names: Sequence[str],
        block_size: int,
        pass_at: Sequence[int] = (),
        correct: str | None = None,
        votes: Votes | None = None,
        resamples: int = 0,
        seed: int = 0,
    ) -> None:
        from dirl.evaluation.problem_means import ProblemMeans  # not above: an error in a config needs none of it

        super().__init__()
        self.reward_names, self.block_size, self.pass_at = tuple(reward_names), block_size, tuple(pass_at)
        self.correct = reward_names[0] if correct is None else correct
        self.votes = votes
        names = ["reward", "accuracy", "response_length", "truncated", "tokens_per_step", "denoising_steps"]
        names += [f"reward/{name}" for name in reward_names] + [f"pass_at_{k}" for k in pass_at]
        names += [f"maj_at_{k}" for k in voted_ks(pass_at)] if votes else []
        self.means = ProblemMeans(names, resamples, seed)

    def update(self, trajectories: Iterable[Trajectory], lost: Mapping[str, int] = MappingProxyType({})) -> None:
        """Take scored trajectories; those of one prompt must come in one call.

        Args:
            lost: prompt id -> number of its responses that have no reward.
        """
        found: dict[str, list[Response]] = defaultdict(list)
        for trajectory in trajectories:
            found[trajectory.prompt_id].append(self._response(trajectory))
        for prompt_id, count in lost.items():
            found[prompt_id] += [Response(-1, "", "lost", 0, 0, "stop")] * count
        self.means.update({prompt_id: self._parts(responses) for prompt_id, responses in found.items()})

    def update_problems(self, problems: Iterable[Problem]) -> None:
        """Take problems whose responses have been judged."""
        self.means.update({problem.prompt_id: self._parts(problem.responses) for problem in problems})

    def compute(self) -> dict[str, float]:
        """The metrics of everything taken since `reset`, over all ranks; those without a sample on any are left out."""
        return self.means.compute()

    def reset(self) -> None:
        self.means.reset()

    def _response(self, t: Trajectory) -> Response:
        assert t.reward is not None, "a trajectory that has not been scored"
        judgement: Literal["right", "wrong"] = "right" if t.rewards[self.correct] > 0 else "wrong"
        steps = t.denoising_steps(self.block_size)
        reason = t.finish_reason
        return Response(
            t.sample_index, "", judgement, t.response_length, steps, reason, reward=t.reward, rewards=t.rewards
        )

    def _parts(self, responses: Sequence[Response]) -> "Parts":
        """What one problem adds to each metric."""
        scored = [r for r in responses if r.reward is not None]
        tokens, steps = sum(r.tokens for r in scored), sum(r.steps for r in scored)
        right, count = sum(r.right for r in responses), len(responses)
        parts: dict[str, tuple[float, float]] = {
            "reward": (sum(r.reward or 0.0 for r in scored), len(scored)),
            "accuracy": (right, count),
            "response_length": (tokens, len(scored)),
            "truncated": (sum(r.finish_reason == "length" for r in scored), len(scored)),
            "tokens_per_step": (tokens, steps),  # a ratio of sums
            "denoising_steps": (steps, len(scored)),
        }
        for name in self.reward_names:
            parts[f"reward/{name}"] = (sum(r.rewards[name] for r in scored), len(scored))
        enough = [k for k in self.pass_at if k <= count]
        parts |= {f"pass_at_{k}": (pass_at_k(count, right, k), 1.0) for k in enough}
        if self.votes:
            votes = ballot([(r.answer, r.right) for r in responses], one_right=self.votes == "value")
            parts |= {f"maj_at_{k}": (maj_at_k(votes, k), 1.0) for k in voted_ks(enough)}
        return parts


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k)."""
    return 1 - comb(samples - correct, k) / comb(samples, k)
