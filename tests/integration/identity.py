"""Whether two runs are one: everything that their checkpoints hold, to the bit."""

from pathlib import Path
from typing import Any

import torch

OF_THE_RUN = ("generate_s", "reward_s", "push_s", "rollout_s", "score_s", "seconds", "tokens_per_second")
CLOCKED = ("time/", "throughput/", "share/", "memory/")
"""What the clock says, and columns of metrics.csv that no two runs have in common."""


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Names of the places at which two nested states differ; tensors are compared bit by bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape
        return [] if same and one.numpy().tobytes() == two.numpy().tobytes() else [where]
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [key for key in (*one, *(key for key in two if key not in one)) if not of_the_clock(str(key))]
        return [d for key in keys for d in differences(one.get(key), two.get(key), f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True)) for d in differences(a, b, f"{where}/{i}")]
    same = one == two or (one != one and two != two)
    return [] if type(one) is type(two) and same else [f"{where}: {one!r:.60} and {two!r:.60}"]


def of_the_clock(key: str) -> bool:
    return key.rsplit("/")[-1] in OF_THE_RUN or key.startswith(CLOCKED)


def state(path: Path) -> dict[str, Any]:
    """A checkpoint without the paths that ModelCheckpoint remembers."""
    loaded = torch.load(path, weights_only=True)
    loaded["callbacks"] = {k: v for k, v in loaded["callbacks"].items() if not k.startswith("ModelCheckpoint")}
    return loaded


def checkpoint(root: Path, step: int) -> Path:
    """The newest checkpoint of a step in a run's folder."""
    found = root.glob(f"logs/version_*/checkpoints/step={step}.ckpt")
    return max(found, key=lambda path: int(path.parts[-3].removeprefix("version_")))


def assert_identical(one: Path, two: Path, step: int) -> None:
    found = differences(state(checkpoint(one, step)), state(checkpoint(two, step)))
    assert not found, found[:10]
