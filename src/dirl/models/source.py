"""Where a model comes from and where it goes: a Hugging Face folder or hub name, or a new one of a given shape."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
from dirl.models.model_files import dtype_name, files_to_carry
from dirl.models.sdar import SDARConfig, register_models
from dirl.models.special_tokens import check_tokenizer, mask_token_id, stop_token_ids, unknown_ids
from dirl.models.tokenizer import new_tokenizer
from dirl.models.weight_files import BROKEN_SOURCE, WeightFiles, empty_backbone, holds_weight_files, stored_dtype
from dirl.ranges import at_least, positive
from dirl.seeds import run_seed
from dirl.types import ModelSpec

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
SUPPORTED = ("qwen3", "qwen3_moe", "sdar", "sdar_moe")


@dataclass(frozen=True)
class ModelDescription:
    """All there is to know of a model before its weights are read."""

    config: PreTrainedConfig
    """Its dtype is that of the stored weights, whatever they are loaded as."""
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    carried: Mapping[str, bytes] = field(default_factory=dict)
    """Files of the source, by name, that go with every export as they are."""


class ModelSource(ABC):
    """Makes a backbone, its tokenizer and the spec that all other parts take from it."""

    @abstractmethod
    def describe(self) -> ModelDescription:
        """Config, tokenizer and spec; ValueError if it cannot serve as a block-diffusion model."""

    @abstractmethod
    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """The backbone with its weights, on CPU; `config` is that of `describe`."""

    def weight_files(self, config: PreTrainedConfig) -> WeightFiles | None:
        """The same weights tensor by tensor, for processes that keep a part of the model; None: `build` alone."""
        return None


class PretrainedModel(ModelSource):
    """A model in Hugging Face format, or in a checkpoint of a run. No remote code is executed.

    Args:
        path: local folder or hub name of a Qwen3, Qwen3-MoE, SDAR or SDAR-MoE model; or a checkpoint, sharded or not.
        block_size: needed where the model's config has none (plain Qwen3); must agree where it has one.
        mask_token: mask token or its id, where neither config nor tokenizer names it.
        stop_tokens: further tokens that end a response.
        dtype: of the weights; training wants float32, `auto` keeps the stored one (a checkpoint's: as exported).
        experts: of a Mixture of Experts: `grouped` is one product per projection (on a GPU in bf16 only), `loop` one
            for each expert, for which the host waits; `auto` is grouped where that is possible.
    """

    def __init__(
        self,
        path: str,
        block_size: int | None = None,
        mask_token: str | int | None = None,
        stop_tokens: list[str] | None = None,
        dtype: Precision = "float32",
        experts: Experts = "auto",
    ) -> None:
        if block_size is not None:
            check_block_size(block_size, "source.block_size")
        self.path, self.block_size, self.mask_token, self.dtype = path, block_size, mask_token, dtype
        self.stop_tokens, self.experts = stop_tokens or [], experts

    def describe(self) -> ModelDescription:
        register_models()
        if (checkpoint := self.checkpoint) is not None:
            with unpacked(read(checkpoint, thorough=False)) as folder:
                return self._describe(str(folder))
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") > 1
        if looks_local and not Path(self.path).expanduser().is_dir():
            raise ValueError(f"model path={self.path!r}: no such folder; train or download the model first")
        return self._describe(os.path.expanduser(self.path))

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint of a run that `path` names; None: it is a model in Hugging Face format."""
        path = Path(self.path).expanduser()
        return path if is_checkpoint(path) else None

    def _describe(self, path: str) -> ModelDescription:
        try:
            config = AutoConfig.from_pretrained(path)
        except OSError as error:
            raise ValueError(
                f"model path={self.path!r} is no folder with a model here (relative to {Path.cwd()}), and the hub did "
                "not give it: correct the path, or train that model first"
            ) from error
        check_architecture(config, self.path)
        choose_experts(config, self.experts, self.path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        spec = resolve_spec(config, tokenizer, self.block_size, self.mask_token, self.stop_tokens)
        if config.dtype is None:
            config.dtype = stored_dtype(Path(path))
        return ModelDescription(config, tokenizer, spec, files_to_carry(path, config))

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        if self.checkpoint is not None:
            weights = self.weight_files(config)
            backbone = empty_backbone(config, weights.dtype)
            weights.fill(backbone)
            backbone.tie_weights()
            return backbone.eval()  # as from_pretrained
        model, loading = AutoModelForCausalLM.from_pretrained(
            os.path.expanduser(self.path),
            config=config,
            dtype=self.dtype,
            attn_implementation=ATTENTION_NAME,
            output_loading_info=True,
        )
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
            dtype = dtype_name(config.dtype) if self.dtype == "auto" else self.dtype
            return CheckpointWeights(self.checkpoint, getattr(torch, dtype))
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            folder = Path(snapshot_download(self.path, allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
        if not holds_weight_files(folder):
            log.warning("%s holds no safetensors files: every process builds the whole model in host memory", folder)
            return None
        return WeightFiles(folder, None if self.dtype == "auto" else getattr(torch, self.dtype))


class NewModel(ModelSource):
    """A model with random weights, e.g. for a demonstration or a test of a pipeline.

    Args:
        block_size: tokens of a diffusion block.
        alphabet: characters of a character-level tokenizer; None: bytes.
        corpus: text files to learn byte-pair merges from, up to `vocab_size` tokens.
        tokenizer: folder or hub name of an existing tokenizer, instead of a new one.
        seed: of the initial weights, independent of any other random state; None: that of `seed_everything`.
    """

    def __init__(
        self,
        block_size: int = 4,
        hidden_size: int = 128,
        intermediate_size: int = 384,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 2,
        head_dim: int = 32,
        max_position_embeddings: int = 1024,
        tie_word_embeddings: bool = True,
        rope_theta: float = 10000.0,
        initializer_range: float = 0.02,
        alphabet: str | None = None,
        corpus: list[str] | None = None,
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        stop_tokens: list[str] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        seed: int | None = None,
    ) -> None:
        check_block_size(block_size, "block_size")
        sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "head_dim": head_dim}
        sizes |= {"num_attention_heads": num_attention_heads, "num_key_value_heads": num_key_value_heads}
        at_least(1, "source", num_hidden_layers=num_hidden_layers, vocab_size=vocab_size, **sizes)
        at_least(1, "source", max_position_embeddings=max_position_embeddings)
        positive("source", rope_theta=rope_theta, initializer_range=initializer_range)
        self.block_size, self.dtype, self.stop_tokens = block_size, dtype, stop_tokens or []
        self.seed = run_seed(seed, "source.seed")
        self.alphabet, self.corpus, self.vocab_size, self.tokenizer = alphabet, corpus, vocab_size, tokenizer
        self.shape = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "max_position_embeddings": max_position_embeddings,
            "tie_word_embeddings": tie_word_embeddings,
            "initializer_range": initializer_range,
            "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
        }

    def describe(self) -> ModelDescription:
        register_models()
        if self.tokenizer is not None:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        else:
            tokenizer = new_tokenizer(self.alphabet, self.corpus, self.vocab_size)
        config = SDARConfig(
            vocab_size=len(tokenizer),
            block_size=self.block_size,
            mask_token_id=mask_token_id(tokenizer, None),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype=self.dtype,
            **self.shape,
        )
        spec = resolve_spec(config, tokenizer, self.block_size, None, self.stop_tokens)
        return ModelDescription(config, tokenizer, spec)

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)


def resolve_spec(
    config: object,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None,
    mask_token: str | int | None,
    stop_tokens: Sequence[str | int],
) -> ModelSpec:
    """The one spec of this model; writes block size, mask token and stop tokens into its config: they are saved."""
    configured_mask = mask_token if mask_token is not None else getattr(config, "mask_token_id", None)
    stop_tokens = [*stop_tokens, *(getattr(config, "stop_token_ids", None) or [])]
    check_tokenizer(tokenizer, configured_mask, stop_tokens)
    known = getattr(config, "block_size", None)
    if block_size is not None and known is not None and block_size != known:
        raise ValueError(
            f"block_size={block_size} disagrees with the model config's block_size={known}: leave it out, or change "
            "the model's config.json if you really want to retrain the model with another block size"
        )
    size = block_size if block_size is not None else known
    if size is None:
        raise ValueError("block_size: the model's config has none; set block_size on the model, e.g. 4")
    check_block_size(size, "block_size")
    mask_id = mask_token_id(tokenizer, configured_mask)
    if mask_id >= config.vocab_size:
        raise ValueError(
            f"mask_token_id={mask_id} does not fit the model's vocab_size={config.vocab_size}: use a mask token that "
            "the model has an embedding for"
        )
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ValueError(
            f"the tokenizer has token {largest} ({token!r}), the model's vocab_size={config.vocab_size} ends before "
            "it: use the tokenizer that belongs to the model, or resize the model's embeddings"
        )
    config.block_size, config.mask_token_id = size, mask_id
    stops = stop_token_ids(tokenizer, stop_tokens)
    config.stop_token_ids = list(stops)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    return ModelSpec(size, mask_id, stops, pad, config.vocab_size, unknown_ids(tokenizer, config.vocab_size, stops))


def check_block_size(size: int, name: str) -> None:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}={size!r}: a block has a positive whole number of tokens, e.g. 4")


def check_architecture(config: object, name: str) -> None:
    """Raise ValueError unless this is a Qwen3-shaped model with full attention in every layer."""
    if config.model_type not in SUPPORTED:
        raise ValueError(
            f"model {name!r} has model_type={config.model_type!r}; supported are {', '.join(SUPPORTED)} "
            "(block masks need Qwen3's layers)"
        )
    kinds = getattr(config, "layer_types", None)  # Qwen3-MoE has none: its window is that of all layers
    if kinds is None:
        kinds = ["sliding_attention" if config.sliding_window else "full_attention"] * config.num_hidden_layers
    sliding = [i for i, kind in enumerate(kinds) if kind != "full_attention"]
    if sliding:
        raise ValueError(f"model {name!r}: layers {sliding} use sliding-window attention; set use_sliding_window=false")
