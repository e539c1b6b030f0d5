"""Where a model comes from: a Hugging Face folder or hub name, or a checkpoint of a run."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dirl.attention import ATTENTION_NAME
from dirl.checkpoints.reading import read
from dirl.finite import check_weight
from dirl.models.checkpoint_weights import CheckpointWeights, is_checkpoint, unpacked
from dirl.models.experts import Experts, choose_experts
from dirl.models.families import ModelFamily, check_served, family_of, register_family, register_models
from dirl.models.families.refused import refuse_code
from dirl.models.families.weights import empty_backbone
from dirl.models.model_files import dtype_name, files_to_carry
from dirl.models.spec import check_block_size, resolve_spec
from dirl.models.weight_files import BROKEN_SOURCE, WeightFiles, holds_weight_files, stored_dtype
from dirl.types import ModelSpec

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelDescription:
    """All there is to know of a model before its weights are read."""

    config: PreTrainedConfig
    """Its dtype is that of the stored weights, whatever they are loaded as."""
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    carried: Mapping[str, bytes] = field(default_factory=dict)
    """Files of the source, by name, that go with every export as they are."""

    @property
    def family(self) -> ModelFamily:
        return family_of(self.config)


class ModelSource(ABC):
    """Makes a backbone, its tokenizer and the spec that all other parts take from it."""

    fills_masks: ClassVar[bool] = True
    """Whether there is anything to be sampled from it."""

    @abstractmethod
    def describe(self) -> ModelDescription:
        """Config, tokenizer and spec; ValueError if it cannot serve as a block-diffusion model."""

    def read_config(self) -> PreTrainedConfig:
        """The config alone, for plans; OSError where it cannot be reached."""
        return self.describe().config

    @abstractmethod
    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """The backbone with its weights, on CPU; `config` is that of `describe`."""

    def weight_files(self, config: PreTrainedConfig) -> WeightFiles | None:
        """The same weights tensor by tensor, for processes that keep a part of the model; None: `build` alone."""
        return None


class PretrainedModel(ModelSource):
    """A model in Hugging Face format, or in a checkpoint of a run. No remote code is executed.

    Args:
        path: local folder or hub name of a model of a known family (docs/models.md); or a checkpoint, sharded or not.
        block_size: needed where the model's config has none; must agree where it has one.
        mask_token: mask token or its id, where neither config nor tokenizer names it.
        stop_tokens: further tokens that end a response.
        dtype: of the weights; training wants float32, `auto` keeps the stored one (a checkpoint's: as exported).
        experts: of a Mixture of Experts: `grouped` is one product per projection (on a GPU in bf16 only), `loop` one
            for each expert, for which the host waits; `auto` is grouped where that is possible.
        family: what is known of the backbone; None: of the families that are known, the one that serves its model_type.
    """

    def __init__(
        self,
        path: str,
        block_size: int | None = None,
        mask_token: str | int | None = None,
        stop_tokens: list[str] | None = None,
        dtype: Precision = "float32",
        experts: Experts = "auto",
        family: ModelFamily | None = None,
    ) -> None:
        if block_size is not None:
            check_block_size(block_size, "source.block_size")
        self.path, self.block_size, self.mask_token, self.dtype = path, block_size, mask_token, dtype
        self.stop_tokens, self.experts, self.family = stop_tokens or [], experts, family

    def describe(self) -> ModelDescription:
        with self._folder() as folder:
            looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") > 1
            if looks_local and not Path(folder).is_dir():
                raise ValueError(f"model path={self.path!r}: no such folder; train or download the model first")
            return self._describe(folder)

    def read_config(self) -> PreTrainedConfig:
        register(self.family)
        with self._folder() as folder:
            return self._config(folder)

    @contextmanager
    def _folder(self) -> Iterator[str]:
        """The folder or hub name to read from, within the block."""
        if self.checkpoint is None:
            yield os.path.expanduser(self.path)
            return
        with unpacked(read(self.checkpoint, thorough=False)) as folder:
            yield str(folder)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint of a run that `path` names; None: it is a model in Hugging Face format."""
        path = Path(self.path).expanduser()
        return path if is_checkpoint(path) else None

    def _describe(self, path: str) -> ModelDescription:
        if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
            raise ValueError(
                f"model path={self.path!r} is an adapter and no model: name its base (base_model_name_or_path in its "
                "adapter_config.json) as the path and, for fit, the adapter as model.lora.adapter; or export the run "
                "that made it with export.form=merged"
            )
        register(self.family)
        try:
            config = self._config(path)
        except OSError as error:
            raise ValueError(
                f"model path={self.path!r} is no folder with a model here (relative to {Path.cwd()}), and the hub did "
                "not give it: correct the path, or train that model first"
            ) from error
        family = family_of(config, self.path)
        family.check(config, self.path)
        if self.family is not None and config.model_type not in self.family.model_types:
            raise ValueError(
                f"model {self.path!r} has model_type={config.model_type!r}, which family={type(self.family).__name__} "
                f"does not serve: it names {', '.join(self.family.model_types)}"
            )
        choose_experts(config, self.experts, self.path, bool(family.shape(config).experts))
        tokenizer = self._tokenizer(path, config)
        spec = resolve_spec(config, tokenizer, self.block_size, self.mask_token, self.stop_tokens)
        config.dtype = config.dtype or stored_dtype(Path(path))
        carried = files_to_carry(path, config)
        refuse_code(config.model_type, carried, self.path)
        return ModelDescription(config, tokenizer, spec, carried)

    def _tokenizer(self, path: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(path)

    def _config(self, path: str) -> PreTrainedConfig:
        """Looked at first: transformers asks for leave to run code where it does not know the model type."""
        values, _ = PreTrainedConfig.get_config_dict(path)
        check_served(values, self.path)
        return AutoConfig.from_pretrained(path)

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        if self.checkpoint is not None:
            weights = self.weight_files(config)
            assert weights is not None and weights.dtype is not None, "those of a checkpoint have a dtype"
            backbone = empty_backbone(family_of(config), config, weights.dtype)
            weights.fill(backbone)
            backbone.tie_weights()
            return backbone.eval()  # as from_pretrained
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            os.path.expanduser(self.path),
            config=config,
            dtype=self.dtype,
            attn_implementation=ATTENTION_NAME,
            output_loading_info=True,
        )
        model, loading = loaded  # with that option, a pair
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"model path={self.path!r} lacks {len(missing)} weights that its config asks for, {missing[0]!r} the "
                "first: they would be random; use the files that belong to this config"
            )
        for name, value in model.named_parameters():
            check_weight(name, value.detach(), f"model path={self.path!r}", BROKEN_SOURCE)
        return model

    def weight_files(self, config: PreTrainedConfig) -> WeightFiles | None:
        if self.checkpoint is not None:
            assert config.dtype is not None, "`describe` has set it"
            dtype = dtype_name(config.dtype) if self.dtype == "auto" else self.dtype
            return CheckpointWeights(self.checkpoint, getattr(torch, dtype))
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            folder = Path(snapshot_download(self.path, allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
        if not holds_weight_files(folder):
            log.warning("%s holds no safetensors files: every process builds the whole model in host memory", folder)
            return None
        return WeightFiles(folder, family_of(config), None if self.dtype == "auto" else getattr(torch, self.dtype))


def register(family: ModelFamily | None) -> None:
    """The families that are known, and the one that a source names."""
    register_models()
    if family is not None:
        register_family(family)
