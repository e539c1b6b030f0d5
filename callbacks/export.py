"""Export: the trained model as a Hugging Face folder, gathered from however many shards."""

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from dirl.models import save_model
from dirl.modules.base import BlockDiffusionModule


class Export(L.Callback):
    """Writes weights (safetensors), tokenizer and config with block size and mask token when training ends.

    Args:
        folder: where to; relative to `trainer.default_root_dir`.
        every_n_steps: also write `FOLDER-stepN` while training; None: only at the end.
    """

    def __init__(self, folder: str = "model", every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"export.every_n_steps={every_n_steps}: use at least 1, or null")
        self.folder, self.every_n_steps = folder, every_n_steps

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir) / self.folder
        if stage == "fit" and path.exists():
            rank_zero_warn(f"{path} exists and will be overwritten when training ends; move it, or name another folder")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        step = trainer.global_step
        if self.every_n_steps is not None and step and step % self.every_n_steps == 0:
            self.write(trainer, pl_module, f"{self.folder}-step{step}")

    def on_train_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        self.write(trainer, pl_module, self.folder)

    def write(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, folder: str) -> None:
        """Gather the weights on all ranks, write on the first."""
        path = Path(trainer.default_root_dir) / folder
        weights = {}
        for name, value in pl_module.full_weights():
            if trainer.is_global_zero:
                weights[name] = value.cpu()
        if trainer.is_global_zero:
            save_model(path, pl_module.model.backbone, pl_module.description.tokenizer, weights)
            rank_zero_info(f"model written to {path}")
        trainer.strategy.barrier()
