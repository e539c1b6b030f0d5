"""What the processes of a run hold of a rollout, given out anew to another number of them: nothing lost, nothing twice.

The state of one process is a dict of plain containers, see `dirl.data.rl.RLDataModule.state_dict`:
`stream` (its place in the order of the prompts), `surplus` (groups) and `prefetched` (the next epoch's rollout). Its
`buffer` (optimizer steps) is given out apart, to those that have different data.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, chain, zip_longest
from typing import Any, TypeVar

import torch

T = TypeVar("T")
State = dict[str, Any]
_NOTHING: Any = object()


def redistribute(states: Sequence[State], world_size: int) -> list[State]:
    """The states of `world_size` processes from those of any number, without buffers. Prompts keep their order."""
    return [
        {"stream": stream, "surplus": surplus, "prefetched": prefetched}
        for stream, surplus, prefetched in zip(
            _streams([s["stream"] for s in states], world_size),
            deal([s["surplus"] for s in states], world_size),
            _collections([s["prefetched"] for s in states], world_size),
            strict=True,
        )
    ]


def deal(held: Sequence[Sequence[T]], world_size: int) -> list[list[T]]:
    """Items in the order in which processes that take turns made them, to others that take turns."""
    turns = chain.from_iterable(zip_longest(*held, fillvalue=_NOTHING))
    items = [item for item in turns if item is not _NOTHING]
    return [items[rank::world_size] for rank in range(world_size)]


def _streams(streams: Sequence[State], world_size: int) -> list[State]:
    """All have settled alike; what each has taken since is known to all now."""
    place, skip = streams[0]["place"], set(streams[0]["skip"])
    skip.update(chain.from_iterable(stream["taken"] for stream in streams))
    while place in skip:
        skip.remove(place)
        place += 1
    return [{"place": place, "skip": sorted(skip), "taken": []} for _ in range(world_size)]


def redistribute_buffers(buffers: Sequence[State], world_size: int) -> list[State]:
    """Those of `world_size` processes: the micro-batches of each optimizer step; divisors and counts are sums.

    Trajectories keep numbers of their own, and what holds parts of one trajectory stays together.
    """
    dealt: list[list[State]] = [[] for _ in range(world_size)]
    for parts in zip(*(buffer["steps"] for buffer in buffers), strict=True):
        counts = ("loss_divisor", "sequences", "response_tokens")
        shares = [deal([[part[name]] for part in parts], world_size) for name in counts]
        first = accumulate((_numbers(part["micro_batches"]) for part in parts), initial=0)
        numbered = [_renumbered(part["micro_batches"], number) for number, part in zip(first, parts, strict=False)]
        bundles = deal([_bundles(rows) for rows in numbered], world_size)
        for rank, (divisors, sequences, tokens) in enumerate(zip(*shares, strict=True)):
            step = {"loss_divisor": float(sum(divisors)), "sequences": sum(sequences), "response_tokens": sum(tokens)}
            rows = list(chain.from_iterable(bundles[rank]))
            dealt[rank].append({"micro_batches": rows, "token_budget": parts[0]["token_budget"], **step})
    (epoch,) = {buffer["epoch"] for buffer in buffers}
    return [{"epoch": epoch, "steps": steps} for steps in dealt]


def _numbers(rows: Sequence[State]) -> int:
    """How many numbers the trajectories of these rows take up."""
    return max((int(row["trajectory_ids"].max()) + 1 for row in rows), default=0)


def _renumbered(rows: Sequence[State], first: int) -> list[State]:
    """The rows with their trajectories counted from `first`; -1 stays, of prompts."""
    ids = [row["trajectory_ids"] for row in rows]
    return [{**row, "trajectory_ids": torch.where(i < 0, i, i + first)} for row, i in zip(rows, ids, strict=True)]


def _bundles(rows: Sequence[State]) -> list[list[State]]:
    """The rows, those that share a trajectory in one list, in the order of the first of each."""
    found: list[tuple[set[int], list[State]]] = []
    for row in rows:
        ids = set(row["trajectory_ids"].unique().tolist()) - {-1}
        joined = [bundle for bundle in found if bundle[0] & ids]
        whole = ids.union(*(bundle[0] for bundle in joined)), [*chain.from_iterable(b[1] for b in joined), row]
        at = next((i for i, bundle in enumerate(found) if bundle[0] & ids), len(found))
        found[at:] = [whole, *(bundle for bundle in found[at:] if not bundle[0] & ids)]
    return [bundle for _, bundle in found]


def _collections(collections: Sequence[State | None], world_size: int) -> list[State | None]:
    """The prefetched rollout. Its counts go to the first process: they are summed over all when they are logged."""
    made = [c for c in collections if c is not None]
    if len(made) < len(collections):
        assert not made, "some processes have prefetched a rollout, others have not"
        return [None] * world_size
    groups = deal([c["groups"] for c in made], world_size)
    surplus = deal([c["surplus"] for c in made], world_size)
    sampled = deal([c["sampled"] for c in made], world_size)
    totals: State = {name: dict(sum((Counter(c[name]) for c in made), Counter())) for name in ("counts", "lost")}
    times: State = {name: max(c[name] for c in made) for name in ("generate_s", "reward_s")} | {"steps": []}
    return [
        {"groups": g, "surplus": left, "sampled": every, "counts": {}, "lost": {}, **times} | ({} if rank else totals)
        for rank, (g, left, every) in enumerate(zip(groups, surplus, sampled, strict=True))
    ]
