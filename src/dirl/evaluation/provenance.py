"""What results came about with: device, versions, commit, model, task and options, as plain values."""

import dataclasses
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dirl import __version__
from dirl.evaluation.run import Settings
from dirl.models import ModelDescription, ModelSource, PretrainedModel
from dirl.rewards import Scorer
from dirl.rollout import RolloutEngine
from dirl.tasks import Task
from dirl.types import Prompt

LIBRARIES = ("torch", "transformers", "tokenizers", "math-verify", "sympy")
SECRET = ("api_key", "secret", "password")
"""Options whose names hold one of these are not written down."""


def device_name(device: str) -> str:
    """`NVIDIA H200 (cuda)`, or the processor's name."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(torch.device(device))} ({device})"
    return f"{_processor()} ({device})"


def versions(engine: RolloutEngine) -> dict[str, str]:
    """Versions of this package and of all that results depend on, the engine's own libraries included."""
    found = {"dirl": __version__, "python": platform.python_version()}
    for name in (*LIBRARIES, *engine.libraries):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def commit() -> str | None:
    """The commit of the checkout that this package is run from, with `+changes` where files differ, or None."""
    folder = Path(__file__).parents[1]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed into a folder of some other checkout
        return None
    head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}+changes" if head and changed else head


def described(thing: object) -> dict[str, Any]:
    """Class and options of an object that has not been used yet, as far as it keeps them as plain values."""
    cls = type(thing)
    options = {
        name: plain(value)
        for name, value in vars(thing).items()
        if not name.startswith("_") and not any(word in name for word in SECRET)
    }
    return {"class": f"{cls.__module__}.{cls.__qualname__}"} | {k: v for k, v in options.items() if v is not ...}


def plain(value: Any) -> Any:
    """A value as JSON has it; `...` for what is none."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        found = {str(key): plain(item) for key, item in value.items()}
        return ... if ... in found.values() else found
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return ... if ... in items else items
    return ...


def model_settings(source: ModelSource, description: ModelDescription) -> dict[str, Any]:
    """Which model it is: its source, block size, and state of its files (size and time), which are not read."""
    spec = description.spec
    found = described(source) | {"block_size": spec.block_size, "stop_token_ids": list(spec.stop_token_ids)}
    config = json.loads(description.config.to_json_string(use_diff=False))
    found["config"] = digest({name: value for name, value in config.items() if not name.startswith("_")})
    path = Path(source.path).expanduser() if isinstance(source, PretrainedModel) else None
    if path is not None and path.exists():
        found["path"] = str(path.resolve())
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        state = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
        found["files"] = digest(state)
    return found


def part_settings(
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    prompts: Sequence[Prompt],
    scorer: Scorer,
    settings: Settings,
    engine: RolloutEngine,
    described_engine: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the numbers of one decoding of one task by one model, as plain values.

    Args:
        model: which it is.
        task: class and options, split and limit.
        described_engine: class and options, from before it was used.
    """
    return {
        "model": dict(model),
        "task": dict(task),
        "prompts": {"count": len(prompts), "digest": prompts_digest(prompts)},
        "rewards": [described(reward) for reward in scorer.rewards],
        "correct": scorer.correctness.name,
        "decoding": dataclasses.asdict(settings.decoding),
        "samples": settings.count,
        "seed": settings.seed,
        "portion": settings.portion,
        "engine": dict(described_engine),
        "versions": versions(engine),
    }


def made_by(engine: RolloutEngine, device: str) -> dict[str, Any]:
    """What a start makes its responses with; the engine has its weights."""
    dtype = engine.dtype
    return {
        "engine": type(engine).__name__,
        "device": device_name(str(getattr(engine, "device", device))),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def task_label(task: Task) -> str:
    return getattr(task, "name", None) or type(task).__name__


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """A digest of all that is asked, in tokens, and of the truths."""
    return digest([(p.prompt_id, p.input_ids, p.question, p.ground_truth, p.info) for p in prompts])


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=repr, sort_keys=True).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's name; `platform` has an empty one on most Linux machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
