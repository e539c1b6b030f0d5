"""JSON files hold no number that is not finite, and the first one is named by where it stands."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dirl.finite import NotFiniteError, dumps, first_not_finite

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
GOOD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.property
@given(GOOD)
def test_finite_values_are_written_as_json_writes_them(value: object) -> None:
    assert first_not_finite(value) is None
    assert dumps(value, "here", indent=1) == json.dumps(value, indent=1)


@pytest.mark.property
@given(st.lists(GOOD, max_size=3), st.lists(GOOD, max_size=2), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_the_first_that_is_not_finite_is_named(before: list, after: list, number: float) -> None:
    value = {"rows": [{"a": before, "mean": [*before, number, *after, math.nan]}]}
    place = f"rows[0].mean[{len(before)}] is {number}"
    assert first_not_finite(value) == place
    with pytest.raises(NotFiniteError, match=r"^metrics\.json: ") as error:
        dumps(value, "metrics.json")
    assert place in str(error.value)


def test_what_is_no_json_for_another_reason_says_so() -> None:
    loop: list = []
    loop.append(loop)
    with pytest.raises((ValueError, RecursionError)) as error:
        dumps(loop, "here")
    assert not isinstance(error.value, NotFiniteError)
