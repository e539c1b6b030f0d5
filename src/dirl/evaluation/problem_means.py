"""The torchmetrics metric behind all numbers of an evaluation: ratios of sums over problems, gathered from all ranks.

Imported where it is used: torchmetrics takes a second.
"""

from collections.abc import Mapping, Sequence
from math import fsum

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torchmetrics import Metric

from dirl.evaluation.intervals import intervals
from dirl.seeds import derived_seed

Parts = Mapping[str, tuple[float, float]]
"""Metric -> what one problem adds to numerator and denominator."""


class ProblemMeans(Metric):
    """Each metric is the sum of its numerators over all problems by that of its denominators.

    The state is one row a problem, concatenated over ranks, and put into an order that depends on the ids of the
    problems alone: values and intervals are the same to the bit for every number of processes.

    Args:
        names: of the metrics.
        resamples: of the bootstrap over problems; 0: no intervals.
        seed: of the resamples.
    """

    full_state_update = False
    keys: list[Int64[Tensor, " problems"]]
    rows: list[Float64[Tensor, "problems metrics 2"]]

    def __init__(self, names: Sequence[str], resamples: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.names, self.resamples, self.seed = tuple(names), resamples, seed
        self.add_state("keys", default=[], dist_reduce_fx="cat")
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, problems: Mapping[str, Parts]) -> None:
        """Take problems by their id; every rank calls it before `compute`, be it without any."""
        rows = [[parts.get(name, (0.0, 0.0)) for name in self.names] for parts in problems.values()]
        shape = (len(rows), len(self.names), 2)
        self.keys.append(torch.tensor([derived_seed(i) for i in problems], dtype=torch.int64, device=self.device))
        self.rows.append(torch.tensor(rows, dtype=torch.float64, device=self.device).reshape(shape))

    def compute(self) -> dict[str, float]:
        """Values by name, and the bounds of their intervals as NAME/low and NAME/high; what has no sample is left out.

        Exact sums, rounded once.
        """
        keys, rows = (torch.cat(part) if isinstance(part, list) else part for part in (self.keys, self.rows))
        numbers = rows[keys.argsort(stable=True)].cpu().numpy()
        bounds = intervals(numbers[..., 0], numbers[..., 1], self.resamples, self.seed)
        found: dict[str, float] = {}
        for index, name in enumerate(self.names):
            total = fsum(numbers[:, index, 1])
            if total > 0:
                found[name] = fsum(numbers[:, index, 0]) / total
                if (bound := bounds[index]) is not None:
                    found[f"{name}/low"], found[f"{name}/high"] = bound
        return found
