"""What responses are like: accuracy, pass@k, rewards by name, tokens per denoising step, length, truncation."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import comb, isnan
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from torch import nn

from dirl.types import Trajectory, rewards_of

if TYPE_CHECKING:
    from torchmetrics import MeanMetric


class ResponseMetrics(nn.Module):
    """torchmetrics over scored trajectories; `compute` agrees on all ranks.

    A response that has lost its reward is wrong; it is part of accuracy and pass@k, not of the other metrics.

    Args:
        reward_names: components to report.
        block_size: B, for the count of denoising steps.
        pass_at: the k of pass@k; those beyond the samples of a prompt are left out.
        correct: the component that is above 0 for a correct response; None: the first.
    """

    def __init__(
        self, reward_names: Sequence[str], block_size: int, pass_at: Sequence[int] = (), correct: str | None = None
    ) -> None:
        from torchmetrics import MeanMetric  # not above: it takes a second, and an error in a config needs none of it

        super().__init__()
        self.reward_names, self.block_size, self.pass_at = tuple(reward_names), block_size, tuple(pass_at)
        self.correct = reward_names[0] if correct is None else correct
        names = ["reward", "accuracy", "response_length", "truncated", "tokens_per_step"]
        names += [f"reward/{name}" for name in reward_names] + [f"pass_at_{k}" for k in pass_at]
        self.means = nn.ModuleDict({name: MeanMetric(nan_strategy="error") for name in names})

    def update(self, trajectories: Iterable[Trajectory], lost: Mapping[str, int] = MappingProxyType({})) -> None:
        """Take scored trajectories; those of one prompt must come in one call, for pass@k.

        Args:
            lost: prompt id -> number of its responses that have no reward.
        """
        correct: dict[str, list[bool]] = defaultdict(list)
        for t in trajectories:
            right = t.rewards[self.correct] > 0
            correct[t.prompt_id].append(right)
            steps = t.denoising_steps(self.block_size)
            self._mean("reward").update(*rewards_of([t]))
            self._mean("accuracy").update(float(right))
            self._mean("response_length").update(float(t.response_length))
            self._mean("truncated").update(float(t.finish_reason == "length"))
            self._mean("tokens_per_step").update(t.response_length / steps, weight=steps)  # a ratio of sums
            for name in self.reward_names:
                self._mean(f"reward/{name}").update(float(t.rewards[name]))
        for prompt_id, count in lost.items():
            correct[prompt_id] += [False] * count
            if count:
                self._mean("accuracy").update(0.0, weight=count)
        for k in self.pass_at:
            for answers in correct.values():
                if len(answers) >= k:
                    self._mean(f"pass_at_{k}").update(pass_at_k(len(answers), sum(answers), k))

    def compute(self) -> dict[str, float]:
        """Means over everything taken since `reset`, over all ranks; metrics without a sample on any are left out."""
        values = {name: float(self._mean(name).compute()) for name in self.means}
        return {name: value for name, value in values.items() if not isnan(value)}  # 0 / 0: samples are never NaN

    def reset(self) -> None:
        for name in self.means:
            self._mean(name).reset()

    def _mean(self, name: str) -> "MeanMetric":
        return cast("MeanMetric", self.means[name])


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k)."""
    return 1 - comb(samples - correct, k) / comb(samples, k)
