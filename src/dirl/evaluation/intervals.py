"""Bootstrap intervals over problems, for metrics that are ratios of sums over problems."""

from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
"""Share of the resamples that an interval holds."""
AT_ONCE = 1 << 22
"""Numbers of a piece of the resamples' weights, that is 32 MiB."""


def intervals(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int, seed: int
) -> list[tuple[float, float] | None]:
    """The percentile interval of each of M metrics, which are ratios of sums, when the problems are drawn anew.

    The same problems are drawn for all metrics. None: no interval, for there are fewer than two problems, or none that
    the metric applies to.

    Args:
        numerators: [P, M].
        denominators: [P, M]; 0 where a problem has no part in a metric.
        resamples: how many; 0: no intervals.
    """
    problems, metrics = numerators.shape
    if problems < 2 or resamples < 1:
        return [None] * metrics
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = [(w @ numerators) / (w @ denominators) for w in _weights(problems, resamples, seed)]
    values = np.concatenate(drawn)
    return [_percentiles(values[:, metric]) for metric in range(metrics)]


def _weights(problems: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each problem is in each resample, [R, P] in pieces."""
    rng = np.random.default_rng(seed)
    rows = max(1, AT_ONCE // problems)
    shares = np.full(problems, 1 / problems)
    for start in range(0, resamples, rows):
        yield rng.multinomial(problems, shares, size=min(rows, resamples - start)).astype(np.float64)


def _percentiles(values: np.ndarray) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
