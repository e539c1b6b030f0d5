r"""Finding the final answer of a response and deciding whether it equals the ground truth.

The answer is the last `\boxed{...}` whose braces balance. Equal strings are equal answers; anything else
is left to math-verify, which parses both to sympy expressions (`0.5` equals `\frac{1}{2}`).
"""

import logging
import re
from collections.abc import Callable
from functools import cache, lru_cache

from dirl.rewards.base import RewardSample

_BRACES = re.compile(r"\\+boxed\s*\{|\\[\\{}]|[{}]")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def last_boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` of `text` holds, stripped; None without one.

    Of nested boxes the inner one is the last. A box that is never closed is none.
    """
    open_braces: list[tuple[bool, int]] = []
    start, answer = -1, None
    for brace in _BRACES.finditer(text):
        if brace[0] == "}" and open_braces:
            is_box, begin = open_braces.pop()
            if is_box and begin > start:
                start, answer = begin, text[begin : brace.start()].strip()
        elif brace[0].endswith("{") and brace[0] != r"\{":
            open_braces.append((len(brace[0]) > 1, brace.end()))
    return answer


def bare_answer(text: str) -> str:
    r"""An answer without its wrapping: a `\boxed{...}` in it, or the math delimiters around it."""
    boxed = last_boxed(text)
    text = text.strip() if boxed is None else boxed
    for left, right in _DELIMITERS:
        inner = text[len(left) : -len(right)].strip()
        if text.startswith(left) and text.endswith(right) and inner and left not in inner:
            return inner
    return text


def is_correct(sample: RewardSample) -> bool:
    """Whether the boxed answer equals the ground truth; a response without a box is wrong."""
    truth = bare_answer(sample.ground_truth)
    if not truth:
        raise ValueError("ground_truth is empty; give the question an answer or leave it out of the data")
    answer = last_boxed(sample.response)
    return answer is not None and equal_answers(truth, bare_answer(answer))


@lru_cache(maxsize=4096)
def equal_answers(truth: str, answer: str) -> bool:
    """Whether `answer` is `truth`, as a string or as mathematics.

    Run it in a process that can be killed: sympy may take for ever on a tower of powers, and math-verify's
    own limit, a signal, works in main threads alone, so it is switched off. An answer that does not parse
    is compared as a string; what math-verify raises is raised.
    """
    if truth == answer:
        return True
    parse, verify = load_math_verify()
    expected, given = (parse(rf"\boxed{{{x}}}", parsing_timeout=None, raise_on_error=True) for x in (truth, answer))
    return verify(expected, given, timeout_seconds=None, raise_on_error=True)


@cache
def load_math_verify() -> tuple[Callable[..., list], Callable[..., bool]]:
    """math-verify's (parse, verify); imported late, because sympy takes half a second that most rewards save."""
    from math_verify import parse, verify

    # It warns, once a process, that its time limit is off; ours is the worker's.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, verify
