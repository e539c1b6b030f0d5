"""What a comparison of an answer with the truth can end with."""

from enum import Enum


class Verdict(Enum):
    """`INCOMPARABLE` counts as wrong: one side is no value (`1/0`) or too large, or the comparison failed."""

    RIGHT = "right"
    WRONG = "wrong"
    INCOMPARABLE = "incomparable"

    @classmethod
    def of(cls, right: bool) -> "Verdict":
        return cls.RIGHT if right else cls.WRONG
