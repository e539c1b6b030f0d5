"""Folders of runs, written as `fit` writes them."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 12, "callbacks": None},
    "model": {"class_path": "dirl.modules.RLModule", "init_args": {"source": {"init_args": {"path": "sft/model"}}}},
    "objective": {"class_path": "dirl.objectives.DiPO"},
    "task": {"class_path": "dirl.tasks.Arithmetic"},
    "rollout": {"save_trajectories": None},
    "ckpt_path": None,
}
Rows = Sequence[Mapping[str, Any]]


def write_start(
    root: Path, rows: Rows, version: int = 0, config: Mapping[str, Any] | None = None, evaluations: Rows = ()
) -> Path:
    """`logs/version_N` of one start; returns it."""
    folder = root / "logs" / f"version_{version}"
    folder.mkdir(parents=True)
    names = sorted({name for row in rows for name in row})
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(config or {})}), encoding="utf-8")
    if evaluations:
        (folder / "evaluation.json").write_text(json.dumps(evaluations), encoding="utf-8")
    return folder


def rl_rows(count: int = 12, **columns: float) -> list[dict[str, float]]:
    """A run without anything to warn of; further columns are the same in each row."""
    return [
        {
            "step": step,
            "epoch": step,
            "rollout/reward": 0.4 + 0.03 * step,
            "rollout/accuracy": 0.4 + 0.03 * step,
            "rollout/groups": 16.0,
            "rollout/dropped_uniform": 1.0,
            "rollout/truncated": 0.01,
            "rollout/tokens_per_step": 2.0 + 0.1 * step,
            "train/entropy": 0.5 * math.exp(-step / 10),
            "train/loss": -0.001 * step,
            "train/grad_norm": 1.0 + step % 3,
            "train/mismatch_abs": 1e-6,
            "train/skipped_steps": 0.0,
            "time/generate_s": 2.0,
            "share/generate": 0.4,
            "share/train_step": 0.5,
            "share/other": 0.1,
            "memory/process_peak_gib": 1.5,
            **columns,
        }
        for step in range(count)
    ]


def sft_rows(count: int = 12) -> list[dict[str, float]]:
    losses = [{"step": step, "train/loss": 3.0 / (1 + step), "train/lr": 1e-3} for step in range(count)]
    return [*losses, *({"step": step, "val/nelbo_per_token": 1.0 / (1 + step)} for step in range(0, count, 3))]
