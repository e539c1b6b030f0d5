"""The one seed of a run, for all that does not name its own."""

import os


def run_seed(seed: int | None, name: str = "seed") -> int:
    """The seed itself or, of None, that of `--seed_everything` (Lightning keeps it in PL_GLOBAL_SEED); 0 without one.

    Raises:
        ValueError: it is negative, which numpy's generators do not take.
    """
    if seed is None:
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))
    if seed < 0:
        raise ValueError(f"{name}={seed}: use 0 or more, or null for that of seed_everything")
    return seed
