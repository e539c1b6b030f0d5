"""Which of the rewards says what is correct: accuracies and dynamic sampling look at that one alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dirl.rewards.base import Reward


@dataclass(frozen=True)
class Correctness:
    """The component `name`: above 0 for a correct response."""

    name: str
    judges: bool
    """Whether its reward says so itself; else its values may have degrees, of which each is as good as another."""

    def is_right(self, components: Mapping[str, float]) -> bool:
        return components[self.name] > 0

    def degree(self, components: Mapping[str, float]) -> float:
        """0 or 1 where the reward judges, whatever speed or length add to it; its value otherwise."""
        return float(self.is_right(components)) if self.judges else components[self.name]


def correctness(rewards: Sequence[Reward], named: str | None) -> Correctness:
    """The named one, or the first that judges, or the first that does not say; ValueError without any."""
    names = [reward.name for reward in rewards]
    if named is not None and named not in names:
        raise ValueError(f"correct={named!r} is the name of no reward; name one of {', '.join(names)}")
    by_rank = [
        *(reward for reward in rewards if reward.name == named),
        *(reward for reward in rewards if reward.judges),
        *(reward for reward in rewards if reward.judges is None),
    ]
    if not by_rank:
        raise ValueError(
            f"none of the rewards ({', '.join(names)}) says whether a response is correct: add one that does, e.g. "
            "dirl.rewards.Accuracy (with weight 0 if nothing is to be learned from it), or name one by `correct`"
        )
    return Correctness(by_rank[0].name, bool(by_rank[0].judges))
