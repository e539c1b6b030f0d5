"""Engines in other processes, on this host or others: the trainer's side, the server, and what they say."""
