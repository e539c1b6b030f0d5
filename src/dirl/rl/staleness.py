"""Samples of older weights: what brings them, and what the objective must have to learn from them.

Three policies meet in a token's loss: the behaviour policy that sampled it, the old one that begins the epoch, and the
current one. The ratio r = current / old needs no more than the trainer's own log-probs from before the first update of
the epoch, however many optimizer steps and passes it has. Where the weights that begin it are those that sampled,
behaviour and old policy are one, up to the engine's rounding. Where they are not, the truncated importance weight
min(old / behaviour, C) carries the sample from the policy that made it to the one that the ratio starts at.
"""

from collections.abc import Sequence

from dirl.objectives import Objective
from dirl.types import DecodingParams, Trajectory


def check_stale(reason: str, objective: Objective, decoding: DecodingParams) -> None:
    """Raise ValueError unless this objective can learn from samples of older weights.

    Args:
        reason: what brings them, e.g. `rollout.overlap=true`.
    """
    if remedy := objective.refuses_stale(decoding):
        raise ValueError(f"{reason} trains on samples of an older policy: {remedy}")


def stale_groups(groups: Sequence[Sequence[Trajectory]], policy_version: int) -> int:
    """How many of them hold a sample of other weights than those of this version."""
    return sum(any(t.policy_version != policy_version for t in group) for group in groups)
