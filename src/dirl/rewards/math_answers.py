r"""Finding the final answer of a response and the ground truth, and the verdict on the two.

The answer is the last `\boxed{...}` whose braces balance; boxes that a response lists (`\boxed{1} and \boxed{2}`) are
one answer too. A ground truth of several boxes holds all of them; one in GSM8K's form is what follows `####`.
"""

import re

from dirl.rewards.base import RewardSample
from dirl.rewards.verdict import Verdict

_BRACES = re.compile(r"\\+boxed\s*\{|\\[\\{}]|[{}]")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_BETWEEN = re.compile(
    r"[\s$.]*(?:\\[)\]])?\s*(?:,|;|and|or|\\text\s*\{\s*(?:and|or)\s*\}|,\s*(?:and|or))(?:\\quad|[\s$])*(?:\\[(\[])?"
    r"\s*(?:[A-Za-z]\w{0,5}\s*=\s*)?"
)
MAX_BETWEEN = 40
"""Characters between two boxes of a list; the pattern takes quadratic time."""
_TAIL = " \t\n.,;:"


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Begin, end and stripped content of every complete `\boxed{...}`, in the order of their beginnings.

    Of nested boxes only the inner ones are given. A box that is never closed is none.
    """
    open_braces: list[tuple[int | None, int]] = []
    found: list[tuple[int, int, str]] = []
    for brace in _BRACES.finditer(text):
        if brace[0] == "}" and open_braces:
            start, begin = open_braces.pop()
            if start is not None and not (found and found[-1][0] > start):
                found.append((start, brace.end(), text[begin : brace.start()].strip()))
        elif brace[0].endswith("{") and brace[0] != r"\{":
            open_braces.append((brace.start() if len(brace[0]) > 1 else None, brace.end()))
    return found


def last_boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` of `text` holds, stripped; None without one."""
    found = boxes(text)
    return found[-1][2] if found else None


def last_list(text: str) -> list[str]:
    r"""The boxes that the response lists last: `\boxed{1}, \boxed{2}` or `x=\boxed{1} and y=\boxed{2}`, each once."""
    found = boxes(text)
    listed = found[-1:]
    for box in reversed(found[:-1]):
        between = text[box[1] : listed[0][0]]
        if len(between) > MAX_BETWEEN or not _BETWEEN.fullmatch(between):
            break
        listed.insert(0, box)
    return list(dict.fromkeys(bare_answer(content) for _, _, content in listed))


def voted_answer(text: str) -> str | None:
    """The last answer of a response without its wrapping and blanks: what a majority votes on; None without a box."""
    listed = last_list(text)
    return ",".join("".join(answer.split()) for answer in listed) if listed else None


def bare_answer(text: str) -> str:
    r"""An answer without its wrapping: a `\boxed{...}` in it, or the math delimiters around it."""
    boxed = last_boxed(text)
    text = text.strip() if boxed is None else boxed
    for left, right in _DELIMITERS:
        trimmed = text.rstrip(_TAIL)
        inner = trimmed[len(left) : -len(right)].strip()
        if trimmed.startswith(left) and trimmed.endswith(right) and inner and left not in inner:
            return inner
    return text


def bare_truth(text: str) -> str:
    r"""A ground truth without its wrapping: all of its boxes, what follows `####`, or what `bare_answer` makes of it.

    ValueError if nothing is left of it.
    """
    found = boxes(text)
    if len(found) > 1:
        truth = ", ".join(dict.fromkeys(bare_answer(content) for _, _, content in found))
    elif not found and "####" in text:
        truth = re.sub(r"(?<=\d),(?=\d{3})", "", bare_answer(text.rpartition("####")[2]))
    else:
        truth = bare_answer(text)
    if not truth:
        raise ValueError("ground_truth is empty; give the question an answer or leave it out of the data")
    return truth


def judge(sample: RewardSample) -> Verdict:
    """The boxed answer against the ground truth; a response without a box is wrong."""
    from dirl.rewards.comparison import compare

    truth, answer = bare_truth(sample.ground_truth), last_boxed(sample.response)
    if answer is None:
        return Verdict.WRONG
    verdict = compare(truth, bare_answer(answer))
    listed = last_list(sample.response)
    if verdict is Verdict.RIGHT or len(listed) < 2:
        return verdict
    return Verdict.RIGHT if compare(truth, ", ".join(listed)) is Verdict.RIGHT else verdict


def load_comparison() -> None:
    """Import what compares: sympy takes half a second, which most rewards save."""
    import dirl.rewards.comparison  # noqa: F401
