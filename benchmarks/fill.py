"""How full the packed rows of a policy update are, and how many prompt tokens are repeated to fill them.

python -m benchmarks.fill
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import record
from benchmarks.shapes import TOYS, model_spec
from benchmarks.workload import Load, make_groups
from dirl.objectives import DiPO
from dirl.packing.bin_packing import Lengths, fewest_rows
from dirl.packing.rows import fill_rate
from dirl.rl.steps import piece_groups, step_batch, take_views
from dirl.types import ModelSpec, Trajectory

LOADS = [
    Load(block, tokens, groups, size, prompt, low, high)
    for low, high in ((256, 2048), (1900, 2100))
    for groups, size in ((16, 8), (4, 32))
    for prompt in (150, 1024)
    for block, tokens in ((4, 2), (16, 4))
]
"""128 responses each: what a rank packs at a time where 8 ranks share 128 prompts with 8 responses."""

BUDGETS = (16384, 32768)


def measure(load: Load, token_budget: int) -> dict[str, Any]:
    """Pack one optimizer step."""
    spec = model_spec(TOYS["small"], load.block_size)
    groups = make_groups(load, spec)
    started = time.process_time()
    batches = step_batch(groups, spec, DiPO(), load.longest, token_budget).micro_batches
    seconds = time.process_time() - started
    tokens = sum(map(len, batches))
    prompts = sum(int((batch.branch_ids == 0).sum()) for batch in batches)
    once = load.groups * (load.prompt_tokens // load.block_size * load.block_size)
    return {
        "group_size": load.group_size,
        "prompt": load.prompt_tokens,
        "responses": f"{load.shortest} to {load.longest}",
        "block_size": load.block_size,
        "tokens_per_step": load.tokens_per_step,
        "token_budget": token_budget,
        "tokens": tokens,
        "rows": len(batches),
        "fewest": fewest_rows([_lengths(group, spec) for group in groups], token_budget),
        "fill": fill_rate(batches, token_budget),
        "repeated_prompt": (prompts - once) / tokens,
        "seconds": seconds,
    }


def _lengths(group: Sequence[Trajectory], spec: ModelSpec) -> Lengths:
    ((prompt, responses),) = piece_groups(take_views([group], spec, DiPO()), spec, DiPO())
    return len(prompt), list(map(len, responses))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fill", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="one small load")
    options = parser.parse_args(arguments)
    loads = [Load(groups=2, group_size=4, shortest=256, longest=512)] if options.dry_run else LOADS
    rows = [measure(load, budget) for load in loads for budget in BUDGETS]
    names = [name for name in rows[0] if name != "tokens"]
    cells = [[f"{row[n]:.1%}" if n in ("fill", "repeated_prompt") else row[n] for n in names] for row in rows]
    lowest = min(row["fill"] for row in rows)
    note = f"fewest: no plan has fewer rows; repeated prompt: share of all tokens. Lowest fill {lowest:.1%}."
    record.show("packed rows of one optimizer step", [n.replace("_", " ") for n in names], cells, note)
    print("written to", record.save("fill", {"budgets": BUDGETS}, rows))


if __name__ == "__main__":
    main()
