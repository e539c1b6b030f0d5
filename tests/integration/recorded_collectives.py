"""`dirl`, with every collective that Python calls written down by each rank before it runs.

    python -m tests.integration.recorded_collectives FOLDER fit --config ...

A line says what, which shapes, and who asked. A collective that one rank alone reaches ends or hangs a run, but not
always, and not where it is wrong; so the records of all ranks must be equal, line by line. (DDP's reduction of
gradients runs in C++ and is not among them.)
"""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "gather", "scatter", "barrier"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "monitored_barrier"),
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
)
OURS = (f"{os.sep}dirl{os.sep}", f"{os.sep}callbacks{os.sep}", f"{os.sep}lightning{os.sep}")


def record(folder: Path) -> None:
    """Put a recording function in place of each collective, wherever a module has already taken it by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COLLECTIVES:
        original = getattr(distributed_c10d, name)
        recording = _recording(name, original, folder)
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(name) is original:
                setattr(module, name, recording)


def _recording(name: str, original: Callable, folder: Path) -> Callable:
    @wraps(original)
    def run(*args: object, **kwargs: object) -> object:
        shapes = [tuple(a.shape) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        asked = [f for f in traceback.extract_stack()[:-1] if any(part in f.filename for part in OURS)]
        who = " < ".join(f"{Path(f.filename).name}:{f.name}" for f in reversed(asked[-4:]))
        with (folder / f"rank{dist.get_rank()}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name} {shapes} {who}\n")
        return original(*args, **kwargs)

    return run


def compare(folder: Path, ranks: int = 2) -> int:
    """The number of collectives; AssertionError at the first that differs between ranks."""
    records = [(folder / f"rank{rank}.txt").read_text(encoding="utf-8").splitlines() for rank in range(ranks)]
    for index, lines in enumerate(zip(*records, strict=False)):
        assert len(set(lines)) == 1, f"collective {index} differs between ranks:\n" + "\n".join(lines)
    longest = max(records, key=len)
    shortest = min(map(len, records))
    assert len(longest) == shortest, f"only one rank reaches: {longest[shortest]}"
    return shortest


if __name__ == "__main__":
    from dirl.cli.main import main  # not above: importing this module to compare records need not load it

    record(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
