"""Which LMDeploy this package works with: version and sources of what is built upon, checked before it is used."""

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

from packaging.version import Version

TESTED = {
    "0.18.0": {
        "configurations/sdar.py": "c4144a255cc4b5f8",
        "engine/engine.py": "3a2830561003ac79",
        "engine/engine_instance.py": "239f38717239089c",
        "engine/engine_loop.py": "dce40a0d6df6817a",
        "engine/executor/__init__.py": "8a455a33750d9569",
        "engine/executor/uni_executor.py": "d437e156c1beb403",
        "engine/model_agent/agent.py": "99fb1968a3fb086d",
        "distributed.py": "f64585c2e65476ae",
        "engine/executor/base.py": "3a387d8464611bbc",
        "engine/model_agent/__init__.py": "762625565e3a2201",
        "consts.py": "2024b56760fe2801",
        "models/sdar.py": "620293db038fb29a",
        "models/sdar_moe.py": "a1a66ec07eeb04b2",
        "strategies/ar/sampling.py": "89f9fabe4274aff9",
        "weight_loader/model_weight_loader.py": "2d3269ac76761482",
        "block.py": "7dc04e84c913df42",
        "engine/inputs_maker.py": "66207e77b12aae59",
        "engine/logits_process.py": "2e3b6a1b9334ed0e",
        "model_inputs.py": "aa79af39746ebe20",
        "paging/block_manager/base_block_manager.py": "c992f00a1c2df848",
        "paging/block_manager/default_block_manager.py": "5380c19cafa7a65c",
        "paging/scheduler.py": "d4216b78de44bda7",
        "paging/seq_states/states.py": "e1b2d83b4f1c0fa4",
        "strategies/dllm/engine.py": "2bcbf4fc22c80a13",
        "messages.py": "663c32417be85345",
        "strategies/__init__.py": "d317c081f8f9f0c9",
        "strategies/dllm/__init__.py": "c0acb97b2221df2f",
        "strategies/dllm/model_agent.py": "9856942f9304515e",
        "strategies/dllm/sampling.py": "2bb68ace5194cc53",
        "strategies/dllm/sequence.py": "002ec1a1be89ebaa",
        "strategies/dllm/step_inputs.py": "9c327a352f856fac",
    }
}
"""Fingerprints (SHA-256, first 16 digits) of files below `lmdeploy/pytorch`, by version."""


def check_lmdeploy() -> None:
    """Raise ImportError unless an LMDeploy is installed whose sources are those this package was tested with."""
    supported = ", ".join(sorted(TESTED))
    try:
        version = importlib.metadata.version("lmdeploy").partition("+")[0]  # without the name of a build
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"the LMDeploy engine needs lmdeploy ({supported}), which is not installed: pip install 'dirl[lmdeploy]', "
            "or use the engine dirl.rollout.TorchEngine"
        ) from None
    if version not in TESTED:
        raise ImportError(
            f"lmdeploy {version} is installed; this package works with {supported}: pip install lmdeploy=="
            f"{max(TESTED, key=Version)}, or use the engine dirl.rollout.TorchEngine"
        )
    changed = [name for name, wanted in TESTED[version].items() if fingerprint(_folder() / name) != wanted]
    if changed:
        raise ImportError(
            f"lmdeploy {version} differs from the published one in {', '.join(changed)}: reinstall it (pip install "
            f"--force-reinstall --no-deps lmdeploy=={version})"
        )


def fingerprint(path: Path) -> str:
    """A digest of a file's content; empty if there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def _folder() -> Path:
    spec = importlib.util.find_spec("lmdeploy")
    if spec is None or spec.origin is None:
        raise ImportError("lmdeploy is installed, but its package is not found: reinstall it")
    return Path(spec.origin).parent / "pytorch"
