"""The demo: small tasks with checkable answers, learned from scratch on a CPU, and pictures of how it went."""
