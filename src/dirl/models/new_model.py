"""A model that is made: a shape, random weights, a tokenizer of characters, bytes or merges."""

from typing import Literal

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from dirl.models.families import ModelFamily, family_of
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.source import ModelDescription, ModelSource, register
from dirl.models.spec import check_block_size, resolve_spec
from dirl.models.special_tokens import mask_token_id
from dirl.models.tokenizer import new_tokenizer
from dirl.ranges import at_least, positive
from dirl.seeds import run_seed


class NewModel(ModelSource):
    """A model with random weights, e.g. for a demonstration or a test of a pipeline.

    Args:
        block_size: tokens of a diffusion block.
        alphabet: characters of a character-level tokenizer; None: bytes.
        words: strings that are one token each, beside those characters.
        corpus: text files to learn byte-pair merges from, up to `vocab_size` tokens.
        tokenizer: folder or hub name of an existing tokenizer, instead of a new one.
        seed: of the initial weights, independent of any other random state; None: that of `seed_everything`.
        family: the kind of backbone; None: SDAR, which is Qwen3's.
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
        family: ModelFamily | None = None,
        words: list[str] | None = None,
    ) -> None:
        check_block_size(block_size, "block_size")
        sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "head_dim": head_dim}
        sizes |= {"num_attention_heads": num_attention_heads, "num_key_value_heads": num_key_value_heads}
        sizes |= {"num_hidden_layers": num_hidden_layers, "max_position_embeddings": max_position_embeddings}
        at_least(1, "source", vocab_size=vocab_size, **sizes)
        positive("source", rope_theta=rope_theta, initializer_range=initializer_range)
        own = {"alphabet": alphabet, "corpus": corpus, "vocab_size": vocab_size, "words": words}
        if tokenizer is not None and (beside := [name for name, value in own.items() if value]):
            raise ValueError(
                f"source.tokenizer={tokenizer!r} brings its own tokens: remove source.{', source.'.join(beside)}"
            )
        self.block_size, self.dtype, self.stop_tokens = block_size, dtype, stop_tokens or []
        self.seed, self.family, self.words = run_seed(seed, "source.seed"), family, words or []
        self.alphabet, self.corpus, self.vocab_size, self.tokenizer = alphabet, corpus, vocab_size, tokenizer
        self.shape = sizes | {
            "tie_word_embeddings": tie_word_embeddings,
            "initializer_range": initializer_range,
            "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
        }

    def describe(self) -> ModelDescription:
        register(self.family)
        if self.tokenizer is not None:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        else:
            tokenizer = new_tokenizer(self.alphabet, self.corpus, self.vocab_size, words=self.words)
        family = self.family or Qwen3Family()
        config = family.new_config(
            vocab_size=len(tokenizer),
            block_size=self.block_size,
            mask_token_id=mask_token_id(tokenizer, None),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype=self.dtype,
            **self.shape,
        )
        family.check(config, "new")
        spec = resolve_spec(config, tokenizer, self.block_size, None, self.stop_tokens)
        return ModelDescription(config, tokenizer, spec)

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return family_of(config).build(config)
