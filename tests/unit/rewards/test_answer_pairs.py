"""Verdicts on pairs of answers, decided by mathematics beforehand; and properties over many more pairs."""

import string
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.rewards.answer_pairs import INCOMPARABLE, OTHER, SAME
from tests.unit.rewards.samples import sample

from dirl.rewards import Accuracy, Incomparable
from dirl.rewards.math_answers import judge
from dirl.rewards.notation import plain
from dirl.rewards.verdict import Verdict


def listed(table):
    pairs = [(kind, *pair) for kind in table for pair in table[kind]]
    return [pytest.param(truth, box, id=f"{kind}: {truth} | {box}"[:80]) for kind, truth, box in pairs]


def verdict(truth: str, box: str) -> Verdict:
    return judge(sample(rf"Thus the answer is $\boxed{{{box}}}$.", truth))


@pytest.mark.parametrize(("truth", "box"), listed(SAME))
def test_the_same_mathematics_is_right_however_it_is_written(truth, box):
    assert verdict(truth, box) is Verdict.RIGHT


@pytest.mark.parametrize(("truth", "box"), listed(OTHER))
def test_other_mathematics_is_wrong_however_alike_it_looks(truth, box):
    assert verdict(truth, box) is Verdict.WRONG


@pytest.mark.parametrize(("truth", "box"), listed({"": INCOMPARABLE}))
def test_what_cannot_be_compared_is_a_verdict_and_no_error(truth, box):
    assert verdict(truth, box) is Verdict.INCOMPARABLE
    reward = Accuracy()(sample(rf"\boxed{{{box}}}", truth))
    assert reward == 0.0 and isinstance(reward, Incomparable)


# ----------------------------------------------------------------------------------------------- properties

NUMBERS = st.fractions(min_value=-5000, max_value=5000, max_denominator=40)
SPACES = st.sampled_from(["", " ", "  ", "\n", r"\,", "~", "\u2009"])
FULL_WIDTH = str.maketrans(string.digits, "".join(chr(0xFF10 + i) for i in range(10)))


def renderings(value: Fraction) -> list[str]:
    """Spellings of one number, each exact."""
    p, q = value.numerator, value.denominator
    sign = "-" if p < 0 else ""
    found = [f"{p}/{q}", rf"\frac{{{p}}}{{{q}}}", rf"{sign}\dfrac{{{abs(p)}}}{{{q}}}", rf"\left({3 * p}/{3 * q}\right)"]
    found += [
        f"x={p}/{q}",
        rf"{sign}{abs(p) + q}/{q}{'+' if p < 0 else '-'}1",
        f"–{abs(p)}/{q}" if p < 0 else f"+{p}/{q}",
    ]
    if abs(p) > q > 1:
        found.append(rf"{sign}{abs(p) // q}\frac{{{abs(p) % q}}}{{{q}}}")
    if q == 1:
        found += [str(p), f"{p}.", f"{p}.0", f"{p}°", f"{p:,}", str(p).translate(FULL_WIDTH), f"{p * 10}e-1", f"{p}e0"]
    if q in (1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 40):
        exact = format(p * 10**5 // q, "d")
        found += [f"{exact}e-5", f"{float(value)!r}", rf"{float(value)!r} \times 10^{{0}}"]
    return found


@pytest.mark.property
@given(NUMBERS, st.data())
def test_every_spelling_of_a_number_is_right_and_no_spelling_of_another_is(value, data):
    spellings = st.sampled_from(renderings(value))
    truth, box = data.draw(spellings), data.draw(spellings)
    assert verdict(truth, box) is Verdict.RIGHT, (truth, box)
    # Two fractions with denominators up to 40 are 1/1600 apart at least, which no rounding hides.
    other = data.draw(NUMBERS.filter(lambda number: number != value))
    box = data.draw(st.sampled_from(renderings(other)))
    assert verdict(truth, box) is Verdict.WRONG, (truth, box)


@pytest.mark.property
@given(NUMBERS, NUMBERS, SPACES, SPACES, st.sampled_from(["", ".", ",", ";"]), st.data())
def test_blanks_tails_and_the_text_around_change_no_verdict(value, other, before, after, tail, data):
    truth, box = (data.draw(st.sampled_from(renderings(number))) for number in (value, other))
    text = data.draw(st.text(string.ascii_letters + " .,$\n0123456789=", max_size=30))
    base = verdict(truth, box)
    assert base is (Verdict.RIGHT if value == other else Verdict.WRONG)
    response = rf"{text}\boxed{{{before}{box}{tail}{after}}}{text}"
    assert judge(sample(response, f"{before}{truth}{after}")) is base


@pytest.mark.property
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=5, unique=True), st.data())
def test_a_list_is_right_in_any_order_and_wrong_with_one_part_missing_changed_or_added(values, data):
    truth = ", ".join(rf"\boxed{{{value}}}" for value in values)
    shuffled = [str(value) for value in data.draw(st.permutations(values))]
    glue = data.draw(st.sampled_from([", ", ",", r" \text{ and } ", "; ", " and "]))
    assert verdict(truth, glue.join(shuffled)) is Verdict.RIGHT
    assert verdict(truth, rf"\{{{','.join(shuffled)}\}}") is Verdict.RIGHT
    assert verdict(truth, glue.join(shuffled[1:])) is Verdict.WRONG
    assert verdict(truth, glue.join([*shuffled, "77"])) is Verdict.WRONG
    assert verdict(truth, glue.join([*shuffled[1:], "77"])) is Verdict.WRONG


@pytest.mark.property
@given(st.integers(-20, 19), st.integers(1, 20), st.booleans(), st.booleans(), st.data())
def test_an_interval_and_its_inequality_are_the_same_both_ways(low, width, left_open, right_open, data):
    high = low + width
    interval = f"{'(' if left_open else '['}{low}, {high}{')' if right_open else ']'}"
    chain = f"{low} {'<' if left_open else '≤'} x {'<' if right_open else '≤'} {high}"
    turned = f"{high} {'>' if right_open else '≥'} x {'>' if left_open else '≥'} {low}"
    spellings = st.sampled_from([interval, chain, turned, rf"x \in {interval}"])
    truth, box = data.draw(spellings), data.draw(spellings)
    assert verdict(truth, box) is Verdict.RIGHT, (truth, box)
    other = f"{'[' if left_open else '('}{low}, {high}{')' if right_open else ']'}"
    box = data.draw(st.sampled_from([other, f"x < {high}", f"{low} < x < {high + 1}", str(low)]))
    assert verdict(truth, box) is Verdict.WRONG, (truth, box)


@pytest.mark.property
@given(st.floats(min_value=1e-300, max_value=1e300), st.booleans())
def test_a_json_float_is_itself_in_any_notation_and_not_its_neighbour_in_the_third_digit(value, negative):
    value = -value if negative else value
    digits, _, exponent = f"{value:.17e}".partition("e")
    for box in (repr(value), f"{value:.17e}", rf"{digits} \times 10^{{{int(exponent)}}}", f"{digits}E{exponent}"):
        assert verdict(repr(value), box) is Verdict.RIGHT, box
    assert verdict(repr(value), f"{value * 1.001:.17e}") is Verdict.WRONG
    assert verdict(repr(value), repr(-value)) is Verdict.WRONG


@pytest.mark.property
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_is_an_error_and_a_text_equals_itself(truth, box):
    plain(box)
    if truth.strip() and "boxed" not in truth + box:
        judge(sample(rf"\boxed{{{box}}}", truth))
        if "####" not in truth and "$" not in truth and "\\" not in truth and not set(truth) & set("{}"):
            assert verdict(truth, truth) is Verdict.RIGHT
