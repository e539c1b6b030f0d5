"""Reinforcement learning without Lightning: advantages, filters, collection of groups, the buffer."""
