"""Benchmarks: each module is a command that prints a table last and writes JSON; see docs/performance.md."""
