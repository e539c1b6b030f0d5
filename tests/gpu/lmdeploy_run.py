"""An RL run of the debug recipe with LMDeploy's engine, from the command line's entry to the metrics it logged."""

import json
import tempfile
from pathlib import Path

import torch
from tests.gpu.bounds import Numbers, bounds, hold
from tests.gpu.engine_pair import Shape
from tests.integration.toy import metrics, write_rl

from dirl.cli.main import main

DEBUG_RL = Path(__file__).parents[2] / "configs" / "debug" / "rl.yaml"
LOGGED = (
    *("rollout/reward", "rollout/staleness", "time/push_s", "time/generate_s"),  # once an epoch
    *("train/loss", "train/grad_norm", "train/mismatch_abs"),  # once a step
)


def rl_run(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    block_size: int = 4,
    sleep: bool = False,
    engine: str = "dirl.rollout.LMDeployEngine",
) -> Numbers:
    """Three epochs of the debug recipe; each rollout is of the newest weights, with the log-probs of the trainer.

    The model has the shape's size, but the vocabulary of its tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "overlay.yaml").write_text(_rl_overlay(shape, engine, sleep), encoding="utf-8")
        options = _rl_options(shape, device, dtype, block_size) | {
            "data.init_args.train": write_rl(root / "rl.jsonl"),
            "trainer.default_root_dir": root / "run",
        }
        configs = [f"--config={DEBUG_RL}", f"--config={root / 'overlay.yaml'}"]
        main(["fit", *configs, *(f"--{name}={value}" for name, value in options.items())])
        logged = {name: metrics(root / "run", name) for name in LOGGED}
    numbers = {name: sum(values) / max(len(values), 1) for name, values in logged.items()}
    return hold(
        numbers,
        rollouts=all(len(v) == 3 for name, v in logged.items() if not name.startswith("train/")),
        steps=all(len(v) == 6 for name, v in logged.items() if name.startswith("train/")),
        learned=numbers["train/grad_norm"] > 0,
        newest_weights=numbers["rollout/staleness"] == 0,
        mismatch=max(logged["train/mismatch_abs"], default=1.0) <= bounds(dtype).mismatch,
    )


def _rl_overlay(shape: Shape, engine: str, sleep: bool) -> str:
    settings = shape.engine_settings() | {"sleep": sleep}
    options = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.items())
    return f"""
engine: {{class_path: {engine}, init_args: {{{options}}}}}
rollout: {{rewards: [{{class_path: tests.integration.toy.Letters}}]}}
checkpoint: {{every_n_train_steps: 1, save_top_k: -1}}
"""


def _rl_options(shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int) -> dict[str, object]:
    source = {
        "block_size": block_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "initializer_range": shape.initializer_range,
    }
    return {f"model.init_args.source.init_args.{name}": value for name, value in source.items()} | {
        "model.init_args.optimizer.lr": 0.005,  # so large that log-probs of weights from before stand out in fp32
        "trainer.accelerator": device.type,
        "trainer.precision": "32-true" if dtype == torch.float32 else "bf16-mixed",
        "trainer.max_epochs": 3,
        "trainer.enable_progress_bar": "false",
    }
