"""Sweeps: the same decoding at many thresholds or block sizes, and what accuracy costs in denoising steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dirl.types import DecodingParams

DYNAMIC = "low_confidence_dynamic"


@dataclass(frozen=True)
class Sweep:
    """What a decoding is varied over.

    Args:
        thresholds: of each dynamic decoding, which is evaluated once for each, as NAME@THRESHOLD; e.g. [0.5, 0.7, 0.9].
        block_sizes: that the model decodes with, as MODEL@bSIZE; those up to its own, which it has been trained on.
    """

    thresholds: list[float] | None = None
    block_sizes: list[int] | None = None

    def __post_init__(self) -> None:
        for name in ("thresholds", "block_sizes"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"sweep.{name}={values}: name one or more values, each once")
        if wrong := [value for value in self.thresholds or [] if not 0 < value <= 1]:
            raise ValueError(f"sweep.thresholds: {wrong[0]} is no probability in (0, 1]; use e.g. 0.9")
        if too_small := [size for size in self.block_sizes or [] if size < 1]:
            raise ValueError(f"sweep.block_sizes: {too_small[0]}: use at least 1")

    def __bool__(self) -> bool:
        return bool(self.thresholds or self.block_sizes)

    def decodings(self, named: Mapping[str, DecodingParams], option: str) -> dict[str, DecodingParams]:
        """Those at each threshold, and those without one as they are; ValueError if none has one."""
        if self.thresholds is None:
            return dict(named)
        if not any(one.strategy == DYNAMIC for one in named.values()):
            raise ValueError(
                f"sweep.thresholds: none of {option} ({', '.join(named)}) has the strategy {DYNAMIC}, which alone has "
                "a threshold; name one that has"
            )
        found: dict[str, DecodingParams] = {}
        for name, one in named.items():
            if one.strategy == DYNAMIC:
                found |= {f"{name}@{value:g}": replace(one, threshold=value) for value in self.thresholds}
            else:
                found[name] = one
        return found

    def sizes(self, own: int, model: str) -> list[int | None]:
        """Block sizes of a model, None for its own without a sweep; ValueError for one that it has never seen."""
        if self.block_sizes is None:
            return [None]
        if too_large := [size for size in self.block_sizes if size > own]:
            raise ValueError(
                f"sweep.block_sizes: {too_large[0]} is over the block size of {model}, {own}: it has never seen such a "
                f"block; use sizes up to {own}"
            )
        return list(self.block_sizes)


@dataclass(frozen=True)
class Point:
    setting: float
    """The threshold or the block size."""
    tokens_per_step: float
    accuracy: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """Accuracy against tokens per step of one model on one task."""

    label: str
    points: tuple[Point, ...]
    """The points, in the order of their tokens per step."""

    @property
    def area(self) -> float:
        """Under the curve, by trapezoids, from its slowest to its fastest point: accuracy times tokens per step."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return sum((b.tokens_per_step - a.tokens_per_step) * (a.accuracy + b.accuracy) / 2 for a, b in pairs)

    @property
    def mean_accuracy(self) -> float:
        """The area by the width of the curve, which differs between models: its mean height."""
        width = self.points[-1].tokens_per_step - self.points[0].tokens_per_step
        if width > 0:
            return self.area / width
        return sum(point.accuracy for point in self.points) / len(self.points)

    def area_between(self, slowest: float, fastest: float) -> float:
        """Under the part of the curve between two speeds, beyond its ends as high as there."""
        inner = [p.tokens_per_step for p in self.points if slowest < p.tokens_per_step < fastest]
        places = [slowest, *inner, fastest]
        heights = [self.height(place) for place in places]
        return sum(
            (b - a) * (low + high) / 2
            for a, b, low, high in zip(places, places[1:], heights, heights[1:], strict=False)
        )

    def height(self, place: float) -> float:
        """The accuracy at a speed, between two points on the line between them."""
        before = [p for p in self.points if p.tokens_per_step <= place]
        after = [p for p in self.points if p.tokens_per_step > place]
        if not before or not after:
            return (before or self.points)[-1 if before else 0].accuracy
        a, b = before[-1], after[0]
        share = (place - a.tokens_per_step) / (b.tokens_per_step - a.tokens_per_step)
        return a.accuracy + share * (b.accuracy - a.accuracy)


def curve(label: str, metrics: Sequence[tuple[float, Mapping[str, float]]]) -> Curve:
    """The curve of pairs of a setting and the metrics at it."""
    points = [
        Point(t, m["tokens_per_step"], m["accuracy"], m.get("accuracy/low"), m.get("accuracy/high")) for t, m in metrics
    ]
    return Curve(label, tuple(sorted(points, key=lambda point: (point.tokens_per_step, point.setting))))
