"""Reinforcement learning without Lightning: filters, collection of groups, the buffer."""
