"""The runs that are killed: small ones of each stage, with the checkpoints that users ask for."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.integration.toy import write_rl, write_sft

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
ROLLOUT = """
rollout:
  rewards: [{class_path: tests.integration.toy.Letters}]
  save_trajectories: trajectories
"""
EVALUATE = "evaluate: {decoding: {drawn: {max_response_tokens: 8}}, every_n_epochs: 1}\n"
NEWEST = "save_top_k: 1, save_last: link"
"""As the recipes keep them."""
ALL = 'save_top_k: -1, filename: "{step}"'


@dataclass(frozen=True)
class Scenario:
    """A run by name.

    Args:
        processes: above 1, real commands with the strategy are started.
        kills: in each run of it.
        share: of the cases that are of this scenario, relative to the others.
    """

    name: str
    options: Callable[[Path], list[str]]
    last: int
    """Optimizer steps of the whole run."""
    processes: int = 1
    strategy: str = "single"
    kills: int = 3
    share: float = 1.0

    def args(self, folder: Path, root: Path) -> list[str]:
        """Of `dirl`; the folder, the same one for all runs that are compared, gets the files that they name."""
        folder.mkdir(parents=True, exist_ok=True)
        args = ["fit", *self.options(folder), f"--trainer.default_root_dir={root}"]
        if self.processes > 1:
            args += ["--config", str(CONFIGS / "strategy" / f"{self.strategy}.yaml")]
            args += [f"--trainer.devices={self.processes}"]
        return args


def overlay(folder: Path, *keys: str) -> list[str]:
    path = folder / "overlay.yaml"
    path.write_text("".join(keys))
    return ["--config", str(path)]


def sft(save: str, epochs: int = 6, **options: object) -> Callable[[Path], list[str]]:
    """Four steps an epoch, validation in the middle and at the end."""

    def build(folder: Path) -> list[str]:
        data = write_sft(folder / "sft.jsonl", 32)
        args = ["--config", str(CONFIGS / "debug" / "sft.yaml"), *overlay(folder, f"checkpoint: {{{save}}}\n")]
        args += [f"--data.init_args.train={data}", f"--data.init_args.val={data}", "--trainer.max_steps=-1"]
        args += [f"--trainer.max_epochs={epochs}", "--trainer.val_check_interval=2"]
        args += ["--model.init_args.optimizer.schedule=cosine"]
        return [*args, *(f"--data.init_args.{name}={json.dumps(value)}" for name, value in options.items())]

    return build


def rl(save: str, rollout: str = "", evaluate: str = "", epochs: int = 6) -> Callable[[Path], list[str]]:
    """Four steps an epoch: two of a rollout, which is gone through twice."""

    def build(folder: Path) -> list[str]:
        data = write_rl(folder / "rl.jsonl")
        more = "".join(f"  {line}\n" for line in rollout.splitlines())
        args = ["--config", str(CONFIGS / "debug" / "rl.yaml")]
        keys = (ROLLOUT, more, evaluate, f"checkpoint: {{{save}}}\n")
        args += [*overlay(folder, *keys), f"--data.init_args.train={data}"]
        args += [f"--data.init_args.val={write_rl(folder / 'val.jsonl', 3)}"] if evaluate else []
        args += ["--data.init_args.passes=2", f"--trainer.max_epochs={epochs}"]
        return [*args, "--objective.init_args={clip_low: 0.01, importance_cap: 2.0}"]

    return build


SCENARIOS = [
    Scenario("sft", sft(f"every_n_train_steps: 3, {ALL}"), 24),
    Scenario("sft, workers, newest kept", sft(f"every_n_train_steps: 2, {NEWEST}", num_workers=2), 24),
    Scenario("rl", rl(f"every_n_train_steps: 1, {ALL}", "oversample: 1.5"), 24),
    Scenario(
        "rl, refills, newest kept",
        rl(f"every_n_train_steps: null, every_n_epochs: 1, {NEWEST}", "dynamic_sampling: true"),
        24,
    ),
    Scenario("rl, overlap", rl(f"every_n_train_steps: 3, {ALL}", "overlap: true"), 24),
    Scenario("rl, evaluation", rl(f"every_n_train_steps: 3, {ALL}", evaluate=EVALUATE), 24),
    Scenario("sft, ddp", sft(f"every_n_train_steps: 3, {ALL}"), 24, 2, "ddp", 2, 0.3),
    Scenario("sft, fsdp", sft(f"every_n_train_steps: 3, {ALL}"), 24, 2, "fsdp", 2, 0.3),
    Scenario("rl, ddp", rl(f"every_n_train_steps: 3, {ALL}"), 24, 2, "ddp", 2, 0.3),
    Scenario("rl, fsdp", rl(f"every_n_train_steps: 3, {ALL}"), 24, 2, "fsdp", 2, 0.3),
]
