"""What all processes of a run hold together, read from its checkpoints: in one piece, whoever holds which part."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dirl.rl.dealing import ResponseLengths

PLACES = 100
"""How far the order of the prompts is looked at."""


def whole_state(path: Path) -> dict[str, Any]:
    """A checkpoint, be it a file or a folder of shards, with weights and optimizer gathered.

    Without what belongs to one start: the options of its trainer, the paths that ModelCheckpoint remembers, the row
    that its loggers were still to get.
    """
    if path.is_file():
        state = torch.load(path, weights_only=True)
    else:
        gathered = path.with_name(f"{path.name}.gathered")
        dcp_to_torch_save(path, gathered)
        state = torch.load(path / "meta.pt", weights_only=True) | torch.load(gathered, weights_only=True)
    state["dirl"].pop("unlogged")
    config = state["dirl"]["config"]
    state["dirl"]["config"] = {name: value for name, value in config.items() if not name.startswith("trainer.")}
    if (data := state.get("RLDataModule")) is not None:
        lengths = ResponseLengths()
        lengths.load(data["lengths"], {})
        lengths.settle([rank["pending"] for rank in data["ranks"]])
        data["lengths"] = lengths.known
    state["callbacks"] = {k: v for k, v in state["callbacks"].items() if not k.startswith("ModelCheckpoint")}
    return state


def moments(state: dict[str, Any]) -> list[torch.Tensor]:
    """Both of AdamW's, of all weights."""
    return [torch.tensor(value) for name, value in leaves(state) if "/exp_avg" in name]


def together(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of the RL DataModule over all processes, in an order that does not depend on who holds what."""
    streams = [rank["stream"] for rank in ranks]
    gone = set(streams[0]["skip"]).union(*(stream["taken"] for stream in streams))
    parts = list(zip(*(rank["buffer"]["steps"] for rank in ranks), strict=True))
    (epoch,) = {rank["buffer"]["epoch"] for rank in ranks}
    return {
        "prompts": [place for place in range(streams[0]["place"], PLACES) if place not in gone],
        "surplus": ordered(group for rank in ranks for group in rank["surplus"]),
        "prefetched": _together([rank["prefetched"] for rank in ranks if rank["prefetched"] is not None]),
        "epoch": epoch,
        "rows": [ordered(_counted(row) for part in step for row in part["micro_batches"]) for step in parts],
        "loss_divisor": [sum(part["loss_divisor"] for part in step) for step in parts],
        "sequences": [sum(part["sequences"] for part in step) for step in parts],
    }


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its trajectories counted within it: in the step they have other numbers on other processes."""
    return {**row, "trajectory_ids": torch.unique(row["trajectory_ids"], return_inverse=True)[1]}


def _together(collections: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Prefetched rollouts."""
    if not collections:
        return None
    items = {name: ordered(i for c in collections for i in c[name]) for name in ("groups", "surplus", "sampled")}
    return items | {name: dict(sum((Counter(c[name]) for c in collections), Counter())) for name in ("counts", "lost")}


def ordered(items: Iterable[Any]) -> list[Any]:
    """By all that they hold."""
    return sorted(items, key=lambda item: repr([*leaves(item)]))


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a nested state; a tensor is a list of its numbers."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{where}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{where}/{index}")
    else:
        yield where, value.tolist() if isinstance(value, torch.Tensor) else value
