"""What the sum over the scored tokens of an optimizer step is divided by, and how its trajectories weigh in it."""

from typing import Literal

from dirl.types import Trajectory

Normalization = Literal["token", "sequence", "constant"]
"""`token` divides by the scored tokens of the optimizer step (DAPO, arXiv:2503.14476), `sequence` means over each
trajectory, then over trajectories (GRPO, arXiv:2402.03300), `constant` divides by trajectories * max_response_tokens
(Dr. GRPO, arXiv:2503.20783)."""
NORMALIZATIONS = ("token", "sequence", "constant")


def token_weight(normalization: Normalization, trajectory: Trajectory) -> float:
    """The weight of each scored token of the trajectory."""
    return 1 / len(trajectory.response_ids) if normalization == "sequence" else 1.0


def step_divisor(normalization: Normalization, trajectories: int, scored: int, max_response_tokens: int) -> float:
    """The divisor of an optimizer step, or of one rank's share of it: shares add up."""
    if normalization == "token":
        return float(scored)
    return float(trajectories if normalization == "sequence" else trajectories * max_response_tokens)
