"""What a run does, written down while it goes on: its state where it goes on, the conversations of each step."""

import json
import re
from pathlib import Path

import lightning as L

from dirl.batches import StepBatch

CONVERSATION = re.compile(r"user\n(\d+)\+1=")
"""A question of `toy.write_sft`."""


class Observed(L.Callback):
    """Writes `resumed.ckpt` where a run that was resumed begins to train, and what each process takes of each step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "resumed.ckpt")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: StepBatch, index: int
    ) -> None:
        rows = (pl_module.description.tokenizer.decode(row.input_ids) for row in batch.micro_batches)
        taken = {int(number) for row in rows for number in CONVERSATION.findall(row)}
        line = json.dumps({"epoch": trainer.current_epoch, "step": index, "taken": sorted(taken)})
        path = Path(trainer.default_root_dir) / f"steps-rank{trainer.global_rank}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def steps(root: Path) -> dict[tuple[int, int], list[list[int]]]:
    """By epoch and step, the conversations that each process took."""
    found: dict[tuple[int, int], list[list[int]]] = {}
    for path in sorted(root.glob("steps-rank*.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            found.setdefault((line["epoch"], line["step"]), []).append(line["taken"])
    return found
