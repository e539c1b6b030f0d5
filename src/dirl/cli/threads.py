"""How threads of torch wait for one another: briefly awake, then asleep, for other programs want the cores too."""

import os

SPINS = "30000"
"""A tenth of libgomp's own."""


def wait_asleep() -> None:
    """Bound how long OpenMP spins; to be called before torch is imported. A setting of the user's stays.

    At the end of each operation its threads wait for the last one, and by default they spin: where another program has
    one of the cores they burn theirs until it is their turn. On two cores, starts included, seconds of the demo's SFT:

        spins                        3,000    30,000   300,000 (libgomp's)
        60 steps, alone              42       36       33
        20 steps, beside a loop      27       42       81
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
