"""An autoregressive checkpoint as a block-diffusion model: a mask token is added, all else is as it was stored."""

import copy
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dirl.models.experts import Experts
from dirl.models.families import ModelFamily, family_of
from dirl.models.families.parts import Parts
from dirl.models.mask_row import MaskRow
from dirl.models.source import ModelSource, Precision, PretrainedModel
from dirl.models.spec import check_vocabulary
from dirl.models.special_tokens import find_token
from dirl.models.weight_files import WeightFiles
from dirl.ranges import at_least

MASK_TOKEN = "<|MASK|>"


class AutoregressiveModel(PretrainedModel):
    """A plain Qwen3 or Llama, which predicts the next token, to be trained on blocks (docs/adapting.md).

    The tokenizer gets a mask token. Its row of the embedding, and of a head of its own, is the mean of the rows before
    it: a free row of a vocabulary that was padded, as Qwen3's is, else a new one. Logits are not shifted: what the
    model says at a position is of that position from the first step on. The export has block size and mask token in
    its config, and is read by `PretrainedModel` and by engines.

    Args:
        path: local folder or hub name of an autoregressive model of a known family (docs/models.md).
        block_size: that the model is to have in the end; `data.block_schedule` may go through smaller ones first.
        mask_token: its name; one that the tokenizer has is taken with its row as it is.
        stop_tokens: further tokens that end a response.
        chat_template: a Jinja file, for base models whose tokenizer has none; None: the tokenizer's own.
        pad_vocabulary_to: a vocabulary that has to grow gets a multiple of this many rows: GPUs are slow at odd sizes.
        dtype: of the weights; training wants float32, `auto` keeps the stored one.
        experts: see `PretrainedModel`.
        family: see `PretrainedModel`.
    """

    fills_masks: ClassVar[bool] = False

    def __init__(
        self,
        path: str,
        block_size: int = 4,
        mask_token: str = MASK_TOKEN,
        stop_tokens: list[str] | None = None,
        chat_template: str | None = None,
        pad_vocabulary_to: int = 64,
        dtype: Precision = "float32",
        experts: Experts = "auto",
        family: ModelFamily | None = None,
    ) -> None:
        super().__init__(path, block_size, mask_token, stop_tokens, dtype, experts, family)
        at_least(1, "source", pad_vocabulary_to=pad_vocabulary_to)
        self.chat_template, self.pad_vocabulary_to = chat_template, pad_vocabulary_to
        self._row: MaskRow | None = None

    def read_config(self) -> PreTrainedConfig:
        """The config, with the rows that the mask token adds."""
        super().read_config()  # says where it cannot be reached
        return self.describe().config

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        row, stored = self._mask_row(), copy.deepcopy(config)
        stored.vocab_size = row.stored
        backbone = super().build(stored)
        grow(backbone, family_of(config).parts, row)
        return backbone

    def weight_files(self, config: PreTrainedConfig) -> WeightFiles | None:
        files = super().weight_files(config)
        if files is None:
            return None
        parts = family_of(config).parts
        return GrownFiles(files, self._mask_row(), (f"{parts.embedding}.weight", f"{parts.head}.weight"))

    def _mask_row(self) -> MaskRow:
        if self._row is None:
            self.describe()
        assert self._row is not None, "`_tokenizer` has set it"
        return self._row

    def _tokenizer(self, path: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
        check_autoregressive(config, self.path)
        tokenizer = super()._tokenizer(path, config)
        if self.chat_template is not None:
            tokenizer.chat_template = _read_template(self.chat_template)
        check_vocabulary(tokenizer, config.vocab_size)
        self._row = self._add_mask(tokenizer, config.vocab_size)
        config.vocab_size = self._row.rows
        return tokenizer

    def _add_mask(self, tokenizer: PreTrainedTokenizerBase, stored: int) -> MaskRow:
        """Give the tokenizer the mask token, and have it declare it; returns where its row is."""
        name = self.mask_token
        if not isinstance(name, str) or not name:
            raise ValueError(f"source.mask_token={name!r}: give the token a name, e.g. {MASK_TOKEN}")
        known = find_token(tokenizer, name) is not None
        tokenizer.add_special_tokens({"mask_token": name})
        index = tokenizer.convert_tokens_to_ids(name)
        assert isinstance(index, int)
        rows = stored if index < stored else -(-(index + 1) // self.pad_vocabulary_to) * self.pad_vocabulary_to
        return MaskRow(index, stored, rows, as_it_is=known)


class GrownFiles(WeightFiles):
    """Weight files of which some tensors are read with the row of a mask token."""

    def __init__(self, files: WeightFiles, row: MaskRow, names: tuple[str, ...]) -> None:
        super().__init__(files.folder, files.family, files.dtype)
        self.row, self.names = row, names

    def read(self, name: str, shape: torch.Size, dtype: torch.dtype | None = None) -> Shaped[Tensor, "..."]:
        value = super().read(name, shape, dtype)
        return self.row.put_into(value) if name in self.names else value


@torch.no_grad()
def grow(backbone: PreTrainedModel, parts: Parts, row: MaskRow) -> None:
    """Give embedding and head the row, in place; ties between them stay."""
    whole = {name: row.put_into(_weight(backbone, parts, name)) for name in ("embedding", "head")}
    if row.rows > row.stored:
        with torch.random.fork_rng(devices=[]):  # the new rows are drawn at first
            backbone.resize_token_embeddings(row.rows, mean_resizing=False)
    for name, value in whole.items():
        _weight(backbone, parts, name).copy_(value)


def _weight(backbone: PreTrainedModel, parts: Parts, name: str) -> Tensor:
    weight = parts.of(backbone, name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def check_autoregressive(config: PreTrainedConfig, name: str) -> None:
    """Raise ValueError, with the model's name, unless the config is of a plain causal model of a family."""
    kind = config.model_type
    blocks = {n: value for n in ("block_size", "mask_token_id") if (value := getattr(config, n, None)) is not None}
    if blocks or family_of(config, name).exported_type(config) == kind:
        said = ", ".join(f"{n}={value!r}" for n, value in ({"model_type": kind} | blocks).items())
        raise ValueError(
            f"model {name!r} ({said}) is a block-diffusion model already: read it as dirl.models.PretrainedModel"
        )
    if code := getattr(config, "auto_map", None):
        raise ValueError(
            f"model {name!r}: auto_map={code} in its config names code of its own, which is not run: only a plain "
            f"{kind} can be adapted; use the checkpoint that it was made from"
        )
    classes = getattr(config, "architectures", None) or []
    if classes and not any(each.endswith("ForCausalLM") for each in classes):
        raise ValueError(
            f"model {name!r}: architectures={classes} is no language model that predicts the next token; use the one "
            "that it was made from"
        )
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"model {name!r}: quantization_config in its config: quantised weights cannot be trained; use the "
            "checkpoint in bfloat16"
        )


def check_fills_masks(**sources: ModelSource | None) -> None:
    """Raise ValueError for a source, by the name of its option, from which nothing can be sampled yet."""
    for name, source in sources.items():
        if source is not None and not source.fills_masks:
            raise ValueError(
                f"{name}={type(source).__name__}: it has never filled in a mask, so there is nothing to sample from; "
                "train it by SFT first (docs/adapting.md), and name the exported folder as dirl.models.PretrainedModel"
            )


def _read_template(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"source.chat_template={path!r}: no such file; name a Jinja file with a chat template")
    return file.read_text(encoding="utf-8")
