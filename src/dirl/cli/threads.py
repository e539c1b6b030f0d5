"""How threads of torch wait for one another: briefly awake, then asleep, for other programs want the cores too."""

import os

SPINS = "3000"
"""Some microseconds. libgomp's own are 100 times as many, and 1,000 where it knows that cores are lacking."""


def wait_asleep() -> None:
    """Bound how long OpenMP spins; to be called before torch is imported. A setting of the user's stays.

    At the end of each operation its threads wait for the last one, and by default they spin: where another program has
    one of the cores they burn theirs until it is their turn. Three rollouts and updates of the demo on two cores, start
    included, take 12 s alone (13 s with this bound); beside another program they took 24 to 122 s (27 s with it).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
