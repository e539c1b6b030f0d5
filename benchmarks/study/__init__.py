"""A comparison of objectives at equal cost: SFT once for each task and seed, then RL by each objective from that model.

`make study` runs it, or python -m benchmarks.study with options. Every run is kept and made once, so it goes on where
it stopped.
"""
