"""Pure functions from log-probabilities to scalars."""

from dirl.losses.supervised import weighted_cross_entropy

__all__ = ["weighted_cross_entropy"]
