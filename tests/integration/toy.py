"""Toy data and a dense reward, so that a few steps of a tiny random model already have gradients."""

import csv
import json
import textwrap
from pathlib import Path
from typing import ClassVar

from dirl.objectives import Objective, RowLoss, ScoredRow
from dirl.rewards import Reward, RewardSample


class Letters(Reward):
    """Share of lower-case letters in the response: random models differ in it from sample to sample."""

    in_process: ClassVar[bool] = True

    def __call__(self, sample: RewardSample) -> float:
        text = sample.response
        return sum("a" <= c <= "z" for c in text) / max(len(text), 1)


class LettersOfSome(Letters):
    """Of every fourth question, the others are worth nothing."""

    def __call__(self, sample: RewardSample) -> float:
        return 0.0 if int(sample.ground_truth) % 4 else super().__call__(sample)


class Reinforce(Objective):
    """An objective of someone else."""

    def loss(self, row: ScoredRow) -> RowLoss:
        return RowLoss(-(row.columns["advantages"] * row.logprobs * row.weights).sum(), {})


def write_sft(path: Path, count: int = 40) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i}+1="},
                {"role": "assistant", "content": "ab"[i % 2] * (1 + 7 * i % 23)},
            ]
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rl(path: Path, count: int = 16) -> Path:
    rows = [{"question": "?" * (1 + i % 5) + str(i), "ground_truth_answer": str(i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rl_overlay(
    path: Path, rewards: str = "[{class_path: tests.integration.toy.Letters}]", rollout: str = "", more: str = ""
) -> Path:
    """A config on top of debug/rl.yaml with the toy reward; `rollout` and `more` are further options and keys."""
    options = textwrap.indent(textwrap.dedent(rollout), "  ")
    path.write_text(
        f"""
rollout:
  rewards: {rewards}
{options}
engine: {{class_path: dirl.rollout.TorchEngine}}
checkpoint: {{every_n_train_steps: 1, save_top_k: -1, filename: "{{step}}"}}
{more}
""",
        encoding="utf-8",
    )
    return path


def metrics(root: Path, name: str) -> list[float]:
    """A column of the newest metrics.csv, where it has values."""
    path = max(root.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    with path.open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
