"""Extraction and verdicts on answers of the kinds that the suites contain."""

import pytest
from tests.unit.rewards.samples import sample
from tests.unit.rewards.suite_answers import AIME, GSM8K, KNOWN_WRONG, MATH, OLYMPIAD, RESPONSES

from dirl.rewards import Accuracy
from dirl.rewards.math_answers import judge
from dirl.rewards.verdict import Verdict

ANSWERS = {"gsm8k": GSM8K, "math": MATH, "aime": AIME, "olympiad": OLYMPIAD}
ALL = [(kind, *answer) for kind, answers in ANSWERS.items() for answer in answers if answer not in KNOWN_WRONG]


@pytest.mark.parametrize(
    ("truth", "box", "right"), [pytest.param(*a, id=f"{kind}: {a[0][-20:]} | {a[1]}"[:80]) for kind, *a in ALL]
)
def test_an_answer_is_judged_as_by_hand(truth: str, box: str, right: bool) -> None:
    found = judge(sample(rf"Thus the answer is $\boxed{{{box}}}$.", truth))
    assert (found is Verdict.RIGHT) is right, found


@pytest.mark.parametrize(("truth", "response", "right"), RESPONSES)
def test_the_answer_is_found_in_the_response(truth: str, response: str, right: bool) -> None:
    assert Accuracy()(sample(response, truth)) == float(right)


@pytest.mark.xfail(strict=True, reason="listed in docs/suites.md")
@pytest.mark.parametrize(("truth", "box", "right"), KNOWN_WRONG)
def test_what_is_known_to_be_judged_wrong_is_still(truth: str, box: str, right: bool) -> None:
    assert (judge(sample(rf"\boxed{{{box}}}", truth)) is Verdict.RIGHT) is right


def test_there_are_enough_answers_of_both_kinds() -> None:
    assert len(ALL) + len(RESPONSES) + len(KNOWN_WRONG) >= 300
    for answers in ANSWERS.values():
        rights = [right for _, _, right in answers]
        assert 0.3 < sum(rights) / len(rights) < 0.75, "neither verdict is the usual one"
    assert all(len(set(answers)) == len(answers) for answers in ANSWERS.values()), "each pair once"
