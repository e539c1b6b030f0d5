"""Sweeps: which settings they make, and the area under a curve by hand."""

import pytest

from dirl.evaluation.sweep import Curve, Sweep, curve
from dirl.types import DecodingParams

DYNAMIC, STATIC = DecodingParams(), DecodingParams(strategy="low_confidence_static")


def by_hand() -> Curve:
    points = [(0.5, 4.0, 0.2), (0.9, 2.0, 0.8), (0.7, 3.0, 0.6)]
    return curve("a", [(t, {"tokens_per_step": speed, "accuracy": right}) for t, speed, right in points])


def test_every_threshold_of_a_dynamic_decoding_is_a_setting() -> None:
    made = Sweep(thresholds=[0.5, 0.99]).decodings({"d": DYNAMIC, "s": STATIC}, "decoding")
    assert {name: one.threshold for name, one in made.items()} == {"d@0.5": 0.5, "d@0.99": 0.99, "s": 0.9}
    with pytest.raises(ValueError, match=r"none of decoding \(s\) has the strategy low_confidence_dynamic"):
        Sweep(thresholds=[0.5]).decodings({"s": STATIC}, "decoding")


def test_a_model_decodes_blocks_up_to_its_own() -> None:
    assert Sweep(block_sizes=[1, 4]).sizes(4, "m") == [1, 4]
    assert Sweep().sizes(4, "m") == [None]
    with pytest.raises(ValueError, match="8 is over the block size of m, 4: it has never seen such a block"):
        Sweep(block_sizes=[2, 8]).sizes(4, "m")


@pytest.mark.parametrize(
    "wrong", [{"thresholds": [1.5]}, {"thresholds": []}, {"block_sizes": [0]}, {"block_sizes": [2] * 2}]
)
def test_what_cannot_be_swept_over_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"sweep\."):
        Sweep(**wrong)


def test_the_area_is_that_of_trapezoids() -> None:
    one = by_hand()
    assert [p.setting for p in one.points] == [0.9, 0.7, 0.5]
    assert one.area == pytest.approx(0.7 + 0.4)
    assert one.mean_accuracy == pytest.approx(1.1 / 2)
    assert one.area_between(2.0, 4.0) == pytest.approx(one.area)
    assert one.area_between(1.0, 5.0) == pytest.approx(0.8 + 1.1 + 0.2), "beyond its ends as high as there"
    assert one.area_between(2.5, 3.5) == pytest.approx((0.7 + 0.6) / 4 + (0.6 + 0.4) / 4)


def test_a_curve_of_one_point_has_a_height_and_no_area() -> None:
    one = curve("a", [(0.9, {"tokens_per_step": 2.0, "accuracy": 0.5})])
    assert (one.area, one.mean_accuracy) == (0.0, 0.5)
