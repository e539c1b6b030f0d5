"""What one packed forward and backward cost against response length, model size and group size.

python -m benchmarks.scaling
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks import record
from benchmarks.baselines import Limits
from benchmarks.fresh_process import in_fresh_process
from benchmarks.layouts import Candidate, measure
from benchmarks.workload import Load

OURS = Candidate("one_forward", "auto")
BASE = Load(shortest=512, longest=512, group_size=8, prompt_tokens=150)
BASE_MODEL = "small"


def sweeps() -> list[tuple[str, str, Load]]:
    """(what varies, model, load); responses to one prompt are 4,096 tokens together where the length varies."""
    lengths = [(256, 16), (512, 8), (1024, 4), (2048, 2), (4096, 1)]
    load = [("length", BASE_MODEL, dataclasses.replace(BASE, shortest=n, longest=n, group_size=g)) for n, g in lengths]
    model = [("model", name, BASE) for name in ("tiny", "small", "medium")]
    group = [
        ("group", BASE_MODEL, Load(group_size=g, prompt_tokens=1024, shortest=256, longest=256))
        for g in (1, 2, 4, 8, 16, 32)
    ]
    return load + model + group


def dry_sweeps() -> list[tuple[str, str, Load]]:
    small = Load(group_size=2, prompt_tokens=6, shortest=9, longest=9)
    return [("length", "tiny", small), ("model", "tiny", small), ("group", "tiny", small)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="toy size")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for varied, model, load in dry_sweeps() if options.dry_run else sweeps():
        cost = in_fresh_process(measure, load, OURS, Limits(), model, 2.0, threads=options.threads)
        rows.append({"varied": varied, "model": model, **dataclasses.asdict(load), **cost})
    columns = ("varied", "model", "prompt", "response", "group", "tokens", "visible pairs", "seconds", "tokens/s", "MB")
    cells = [
        (
            *(row[name] for name in ("varied", "model", "prompt_tokens", "longest", "group_size", "tokens")),
            f"{row['visible_pairs'] / 1e6:,.1f} M",
            row["seconds"],
            row["tokens"] / row["seconds"],
            row["peak_bytes"] / 1e6,
        )
        for row in rows
    ]
    record.show("one policy update in one packed forward, B 4, two tokens a step", columns, cells)
    print("written to", record.save("scaling", {"threads": options.threads}, rows))


if __name__ == "__main__":
    main()
