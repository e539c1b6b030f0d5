r"""Rewards for the form of a response: a boxed answer, a thinking part in `<think>` tags."""

from typing import ClassVar

from dirl.rewards.base import Reward, RewardSample
from dirl.rewards.math_answers import last_boxed

OPEN, CLOSE = "<think>", "</think>"


class Boxed(Reward):
    r"""0.1 if the response holds a complete `\boxed{...}`, right or wrong, else 0."""

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = False

    def __call__(self, sample: RewardSample) -> float:
        return 0.0 if last_boxed(sample.response) is None else 0.1


class ThinkFormat(Reward):
    """1 if the response holds exactly one `<think>...</think>`, with something inside, else 0.

    Where it stands and what surrounds it does not matter; `Format` is the stricter one.

    Args:
        opened: the chat template ends the prompt with `<think>`, so that a response begins inside the tags.
    """

    in_process: ClassVar[bool] = True
    judges: ClassVar[bool] = False

    def __init__(self, opened: bool = False, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.opened = opened

    def __call__(self, sample: RewardSample) -> float:
        return float(_split_thinking(self.text(sample)) is not None)

    def text(self, sample: RewardSample) -> str:
        """The response, from the tag that opens its thinking."""
        return f"{OPEN}{sample.response}" if self.opened else sample.response


class Format(ThinkFormat):
    """1 if the whole response is `<think>...</think>` and then an answer, else 0.

    Nothing but blanks may stand before the one pair of tags; neither thinking nor answer may be blank.

    Args:
        opened: the chat template ends the prompt with `<think>`, so that a response begins inside the tags.
    """

    def __call__(self, sample: RewardSample) -> float:
        parts = _split_thinking(self.text(sample))
        return float(parts is not None and not parts[0].strip() and bool(parts[2].strip()))


def _split_thinking(text: str) -> tuple[str, str, str] | None:
    """Text before, inside and after the only pair of tags; None if there is not exactly one that holds something."""
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    before, _, rest = text.partition(OPEN)
    inside, close, after = rest.partition(CLOSE)
    return (before, inside, after) if close and inside.strip() else None
