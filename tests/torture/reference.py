"""The run that nobody kills, and what a killed one must have in the end to be the same."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tests.integration.identity import differences, state
from tests.torture.leavings import compare_folders, compare_numbers, litter
from tests.torture.moments import PHASES, Moments
from tests.torture.nursery import Nursery
from tests.torture.scenarios import Scenario
from tests.torture.start import Start

from dirl.checkpoints.reading import read

LIMIT_S = 300.0
PLACELESS = ("state_dict", "optimizer_states", "optimizer_0", "lr_schedulers")
"""Of a checkpoint, what no place between two steps changes."""


@dataclass(frozen=True)
class Reference:
    """A whole run."""

    scenario: Scenario
    folder: Path
    life: float
    """Seconds from the beginning of `fit` to the end of the process."""
    moments: Moments

    def args(self, root: Path) -> list[str]:
        """Of a run that should be equal, in a folder of its own."""
        return self.scenario.args(self.folder, root)

    @property
    def root(self) -> Path:
        return self.folder / "run"

    @property
    def phases(self) -> list[str]:
        """Those that the run was in, but for `fit` itself."""
        return [phase for phase in PHASES[1:] if self.moments.entered(phase)]


def make_reference(scenario: Scenario, folder: Path, nursery: Nursery) -> Reference:
    """Run it, from beginning to end."""
    folder.mkdir()
    start = Start(scenario, scenario.args(folder, folder / "run"), folder, nursery)
    start.wait_for("fit", 1, LIMIT_S)
    began = time.monotonic()
    if code := start.end(LIMIT_S):
        raise RuntimeError(f"the whole run of {scenario.name!r} ended with exit code {code}, see {start.output}")
    return Reference(scenario, folder, time.monotonic() - began, start.moments)


def compare(reference: Reference, root: Path, damaged: set[Path]) -> list[str]:
    """What differs, in all that two runs leave: every checkpoint, the model, trajectories, the numbers of each step."""
    whole, found = checkpoints(reference.root, set()), checkpoints(root, damaged)
    last = reference.scenario.last
    if last not in found or last not in whole:
        return [f"there is no checkpoint of step {last}, but of {sorted(found)}"]
    said = []
    for step in sorted(whole.keys() & found.keys()):
        expected = load(whole[step][0])
        for path in found[step]:
            said += [f"{path}{d}" for d in differ(expected, load(path))]
    if place(whole[last][0]) not in map(place, found[last]):
        said.append(f"no checkpoint of step {last} is of the place in its epoch where the whole run has written one")
    for name in ("model", "trajectories"):
        said += compare_folders(reference.root / name, root / name)
    return [*said, *compare_numbers(reference.root, root), *litter(root)]


def differ(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Differences of two checkpoints of one step.

    A run that is resumed after its last step has none under way that it could link to as `last.ckpt`: ModelCheckpoint
    writes one at the end of the epoch, whose place is another, and whose weights, optimizer and schedule are the same.
    """
    if one["dirl"]["position"] != two["dirl"]["position"]:
        one, two = ({name: state.get(name) for name in PLACELESS} for state in (one, two))
    return differences(one, two)


def place(path: Path) -> dict[str, Any]:
    return read(path, thorough=False).own["position"]


def checkpoints(root: Path, damaged: set[Path]) -> dict[int, list[Path]]:
    """Checkpoints of all starts by step, but for those that were damaged on purpose; links aside."""
    found: dict[int, list[Path]] = {}
    for path in sorted(root.glob("logs/version_*/checkpoints/*.ckpt")):
        if not path.is_symlink() and path not in damaged:
            named = re.search(r"step=(\d+)", path.name)
            step = int(named[1]) if named else read(path, thorough=False).values["global_step"]
            found.setdefault(step, []).append(path)
    return found


def load(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, whole or sharded."""
    if path.is_file():
        return state(path)
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.pt"
        dcp_to_torch_save(path, whole)
        sharded = torch.load(whole, weights_only=False)
    (values,) = (file for file in path.iterdir() if file.suffix == ".pt")
    rest = torch.load(values, weights_only=True)
    rest["callbacks"] = {k: v for k, v in rest["callbacks"].items() if not k.startswith("ModelCheckpoint")}
    return sharded | rest
