r"""Whether two answers are the same mathematics; math-verify decides, with guards around what it gets wrong.

The guards: a list is compared part by part; an equation is an answer only if it names its value and is true (`x=5`, not
`4=5` or `x+y=0`); inequalities are compared as sets of solutions; a number in another base and a word are no products,
a variable at the end is no unit, `1:2:3` is no quotient; numbers differ if they differ relatively, however small they
are; what is too large to calculate is not calculated. Conventions: units do not count; `50%` answers 50 and 0.5; a
decimal answers an exact value if six places, or six digits of a small one, agree; of a base the truth's is understood.
"""

import re
from functools import lru_cache

from dirl.rewards.notation import ELLIPSIS, plain
from dirl.rewards.relations import RELATION, same_equation, same_solutions, stated
from dirl.rewards.verdict import Verdict
from dirl.rewards.verification import balanced, split_outside, verified

MAX_PARTS = 30
MAX_LENGTH = 4000
"""Characters of an answer that is still parsed."""
_WRAPPER = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_SEPARATOR = re.compile(r"[,;]|(?:\\text\s*\{\s*,?\s*|(?<![A-Za-z\\]))(?:and|or)(?:\s*\}|(?![A-Za-z]))")
_BASED = re.compile(
    r"\(?([0-9A-Za-z]*\d[0-9A-Za-z]*)\)?\s*_\s*(?:\{?\s*(\d+)\s*\}?|\{\s*\\text\s*\{\s*(\w+)\s*\}\s*\})"
)
_QUANTITY = re.compile(r"[-+]?[\d.,/]+(?:\s*[mgshl]|\s+[A-Za-z]+|(?!ab|bc|st|rs|mt|mp)[A-Za-z]{2,})")
_LIKE_UNITS = re.compile(r"([\d})\s]\s*)([cdghlmost]|ab|bc|st|rs|mt|mp)(?=\s*(?:$|[,;]))")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*percent\s*\}|\bpercent\b)\s*$")
_SHORT_WORDS = ("no", "yes", "odd", "one", "two", "six", "ten", "all", "any")
_BASE_NAMES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@lru_cache(maxsize=4096)
def compare(truth: str, answer: str) -> Verdict:
    """Verdict on two bare answers. Run it in a process that can be killed: sympy may take for ever."""
    if truth == answer:
        return Verdict.RIGHT
    if max(len(truth), len(answer)) > MAX_LENGTH:
        return Verdict.INCOMPARABLE
    truth, answer = plain(truth), plain(answer)
    if truth == answer:
        return Verdict.RIGHT
    try:
        return Verdict.of(_equal(*_variables_kept(truth, answer)))
    except Exception:  # whatever the parser or sympy cannot do: counted as a verdict of its own, see Verdict
        return Verdict.INCOMPARABLE


def _variables_kept(truth: str, answer: str) -> tuple[str, str]:
    """Where the truth has variables, letters at the end are some: math-verify reads `6r-4d` as 6r-4, `2ab` as 2."""
    letters = re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", _WRAPPER.sub("", truth)))
    if letters is None or _QUANTITY.fullmatch(truth):
        return truth, answer
    return _LIKE_UNITS.sub(r"\1\2^{1}", truth), _LIKE_UNITS.sub(r"\1\2^{1}", answer)


def _equal(truth: str, answer: str) -> bool:
    words = _letters(truth), _letters(answer)
    if None not in words and (_is_word(truth) or _is_word(answer)):
        return words[0] == words[1]
    based = _based(truth), _based(answer)
    if based != (None, None):
        return _same_in_bases(truth, answer, *based)
    if max(truth.count(":"), answer.count(":")) > 1:
        return _same_ratio(truth, answer)
    if RELATION.search(truth) or RELATION.search(answer):
        return same_solutions(truth, answer)
    return _same_parts(truth, answer)


def _letters(text: str) -> str | None:
    r"""What consists of letters alone, `\text{...}` and parentheses taken off, in lower case."""
    inner = _WRAPPER.sub(r"\1", text).strip(" ().")
    return " ".join(inner.casefold().split()) if re.fullmatch(r"[A-Za-z][A-Za-z' -]*", inner) else None


def _is_word(text: str) -> bool:
    r"""Whether letters are a word, and no product of variables: in `\text{...}`, of more than three, or well known."""
    longest = max(map(len, re.findall("[A-Za-z]+", text)))
    return longest > 3 or _WRAPPER.search(text) is not None or text.casefold() in _SHORT_WORDS


def _based(text: str) -> tuple[str, int] | None:
    """Digits and base of a number like `4210_5`."""
    match = _BASED.fullmatch(text)
    if match is None or match[3] not in (None, *_BASE_NAMES):
        return None
    base = int(match[2]) if match[2] else _BASE_NAMES.index(match[3]) + 2
    digits = match[1].lower()
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return digits, base


def _same_in_bases(truth: str, answer: str, expected: tuple[str, int] | None, given: tuple[str, int] | None) -> bool:
    """Equal in value; without a base in the answer, the one that the truth names is understood."""
    if given is None:
        return expected is not None and answer.lower() == expected[0]
    value = int(*given)
    return int(*expected) == value if expected is not None else _same_parts(truth, str(value))


def _same_parts(truth: str, answer: str) -> bool:
    """Lists and sets in any order, each part once; a single part against a single one."""
    truth, answer = _listed(truth), _listed(answer)
    expected, given = parts(truth), parts(answer)
    if len(expected) + len(given) > 2 and bool(ELLIPSIS.search(truth)) != bool(ELLIPSIS.search(answer)):
        return False  # math-verify drops the dots
    if len(expected) != len(given) or len(expected) > MAX_PARTS:
        expected_tuple, given_tuple = _as_tuple(expected), _as_tuple(given)
        if expected_tuple is not None or given_tuple is not None:
            return _same_value(expected_tuple or truth, given_tuple or answer)
        bracketed = {_outer(truth), _outer(answer)}
        return "=" not in truth + answer and bracketed != {r"\{", "("} and verified(truth, answer)
    for part in expected:
        match = next((other for other in given if _same_value(part, other)), None)
        if match is None:
            return False
        given.remove(match)
    return True


def _as_tuple(listed: list[str]) -> str | None:
    """`y=2, x=1` as `(1, 2)`, for a pair on the other side: values in the order of their names."""
    equations = [stated(part) for part in listed]
    named = {each.text.partition("=")[0]: each.value for each in equations if each.is_equation}
    values = [value for _, value in sorted(named.items()) if value is not None]
    if len(named) < max(2, len(listed)) or len(values) < len(named):
        return None
    return f"({', '.join(values)})"


def _listed(text: str) -> str:
    r"""`S=\{1,2\}` as `\{1,2\}`, `\text{A, B}` as `A, B`."""
    whole = _WRAPPER.fullmatch(text)
    if whole is not None:
        return whole[1]
    value = stated(text).value if r"\{" in text and len(split_outside(text, _SEPARATOR)) == 1 else None
    return text if value is None or _outer(value) != r"\{" else value


def parts(text: str) -> list[str]:
    r"""`1, 2`, `\{1,2\}`, `1 \text{ or } 2` and `1\pm2` as what they list; a tuple or an interval is one part."""
    if _outer(text) == r"\{":
        text = re.sub(r"^\\(left\s*\\)?\{|\\(right\s*\\)?\}$", "", text)
    listed = [part.strip() for part in split_outside(text, _SEPARATOR) if part.strip()]
    return [re.sub(r"\\pm(?![A-Za-z])", sign, part) for part in listed or [text] for sign in _signs(part)]


def _signs(part: str) -> tuple[str, ...]:
    return ("+", "-") if len(re.findall(r"\\pm(?![A-Za-z])", part)) == 1 and r"\mp" not in part else (r"\\pm",)


def _outer(text: str) -> str:
    """The kind of bracket that encloses the whole text: `(`, `\\{` or none."""
    text = re.sub(r"\\(left|right)(?![A-Za-z])\s*", "", text)
    whole = len(split_outside(text[1:-1], re.compile(r"$^"))) == 1 and balanced(text[1:-1])
    if text.startswith(r"\{") and text.endswith(r"\}") and balanced(text[2:-2]):
        return r"\{"
    return "(" if text.startswith("(") and text.endswith(")") and whole else ""


def _same_ratio(truth: str, answer: str) -> bool:
    """`1:2:3` against `2:4:6`: as many terms, in proportion."""
    expected, given = truth.split(":"), answer.split(":")
    if len(expected) != len(given):
        return False
    pairs = zip(expected[1:], given[1:], strict=True)
    return all(verified(rf"({t}) \cdot ({given[0]})", rf"({expected[0]}) \cdot ({a})") for t, a in pairs)


def _same_value(truth: str, answer: str) -> bool:
    """Single answers, of which each may be an equation that names it; 50% answers what asks for percent, too."""
    expected, given = stated(truth), stated(answer)
    if given.value is None and not given.is_equation:
        return False
    if expected.is_equation and given.is_equation:
        return given.holds and same_equation(expected.text, given.text)
    if expected.value is None or given.value is None:
        return False
    percent = [bool(_PERCENT.search(value)) for value in (expected.value, given.value)]
    bare = [_PERCENT.sub("", value) for value in (expected.value, given.value)]
    return verified(expected.value, given.value) or (percent[0] != percent[1] and verified(*bare))
