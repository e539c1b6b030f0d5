"""Losses as pure functions of tensors: sums over the given positions, divided by what the caller passes."""

from dirl.losses.policy import PolicyLoss, PolicyLossConfig, policy_loss
from dirl.losses.supervised import weighted_cross_entropy

__all__ = ["PolicyLoss", "PolicyLossConfig", "policy_loss", "weighted_cross_entropy"]
