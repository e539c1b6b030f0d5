"""Export: the trained model as a Hugging Face folder, gathered from however many shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, final

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from dirl.models import export_model
from dirl.models.adapter_files import base_name, write_adapter
from dirl.models.export import ExportDtype, stored_as
from dirl.models.families.weights import Named
from dirl.models.folder import check_replaceable
from dirl.models.weight_writer import check_size
from dirl.modules.base import BlockDiffusionModule


@final
class Export(L.Callback):
    """Writes weights (safetensors), tokenizer and config with block size and mask token when training ends.

    The folder is read by transformers 4.57 and 5, by LMDeploy and by this package. It is put in its place whole, so
    that a crash leaves what lay there before. With `fast_dev_run` nothing is written.

    Args:
        folder: where to; relative to `trainer.default_root_dir`.
        every_n_steps: also write `FOLDER-stepN` while training; None: only at the end.
        dtype: of the stored weights; `source`: as the model that training began from was stored.
        max_shard_size: of a file of weights; a larger model is written as several.
        form: of a run with LoRA: `merged` is a whole model, `adapter` what peft and transformers put on the base.
    """

    def __init__(
        self,
        folder: str = "model",
        every_n_steps: int | None = None,
        dtype: ExportDtype = "source",
        max_shard_size: str = "5GB",
        form: Literal["merged", "adapter"] = "merged",
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"export.every_n_steps={every_n_steps}: use at least 1, or null")
        check_size(max_shard_size, "export.max_shard_size")
        self.folder, self.every_n_steps, self.dtype, self.max_shard_size = folder, every_n_steps, dtype, max_shard_size
        self.form = form

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:
            return
        if self.form == "adapter":
            _check_adapter(pl_module)
        root = Path(trainer.default_root_dir).resolve()
        path = (root / self.folder).resolve()
        if root.is_relative_to(path):
            raise ValueError(f"export.folder={self.folder!r} is the folder of the run itself: name one for the model")
        check_replaceable(path)
        if path.exists():
            rank_zero_warn(f"{path} exists and will be overwritten when training ends; move it, or name another folder")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, *args: object) -> None:
        step = trainer.global_step
        if self.every_n_steps is not None and step and step % self.every_n_steps == 0:
            self.write(trainer, pl_module, f"{self.folder}-step{step}")

    def on_train_end(self, trainer: L.Trainer, pl_module: BlockDiffusionModule) -> None:
        self.write(trainer, pl_module, self.folder)

    def write(self, trainer: L.Trainer, pl_module: BlockDiffusionModule, folder: str) -> None:
        """Gather the weights on all ranks, write on the first; where that fails, all end."""
        if trainer.fast_dev_run:
            return
        path = Path(trainer.default_root_dir) / folder
        weights = self._tensors(pl_module)
        written = False
        try:
            if trainer.is_global_zero:
                self._write(path, pl_module, weights)
                rank_zero_info(f"{'adapter' if self.form == 'adapter' else 'model'} written to {path}")
            written = True
        finally:
            for _ in weights:
                pass  # the others gather all of them, whatever happened here
            elsewhere = trainer.strategy.broadcast(written)
        if not elsewhere:
            raise RuntimeError(f"the first process could not write the model to {path}; it says why")

    def _tensors(self, pl_module: BlockDiffusionModule) -> Iterator[Named]:
        """What is written, gathered one at a time."""
        if self.form == "adapter":
            return pl_module.full_adapters()
        return pl_module.full_weights(stored_as(pl_module.description, self.dtype))

    def _write(self, path: Path, pl_module: BlockDiffusionModule, tensors: Iterator[Named]) -> None:
        if self.form == "adapter":
            assert pl_module.lora is not None, "`setup` looks"
            write_adapter(path, tensors, pl_module.lora, base_name(pl_module.source))
            return
        shapes, description = pl_module.weight_shapes(), pl_module.description
        export_model(path, description, tensors, shapes, self.dtype, self.max_shard_size)


def _check_adapter(module: L.LightningModule) -> None:
    """Raise ValueError unless the model has an adapter, of a base that has a name."""
    if not isinstance(module, BlockDiffusionModule) or module.lora is None:
        raise ValueError("export.form=adapter, and model.lora=null has none: use merged, or put LoRA on the recipe")
    base_name(module.source)
