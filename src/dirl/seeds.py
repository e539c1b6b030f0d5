"""The one seed of a run, for all that does not name its own."""

import hashlib
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


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from whatever identifies what is drawn, the same on every machine and in every run."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
