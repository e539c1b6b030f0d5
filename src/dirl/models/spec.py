"""The one spec of a model: block size, mask token, stop tokens, from its config, its tokenizer and what a user says."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dirl.models.special_tokens import check_tokenizer, mask_token_id, stop_token_ids, unknown_ids
from dirl.types import ModelSpec

NO_BLOCKS = (
    "block_size: the model's config has none; set block_size on the model, e.g. 4, and mask_token, if it was trained "
    "on blocks. A model that predicts the next token, as Qwen3 and Llama are published, is made a block-diffusion one "
    "by SFT with class_path: dirl.models.AutoregressiveModel as the source (docs/adapting.md)"
)


def resolve_spec(
    config: object,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None,
    mask_token: str | int | None,
    stop_tokens: Sequence[str | int],
) -> ModelSpec:
    """The one spec of this model; writes block size, mask token and stop tokens into its config: they are saved."""
    known = getattr(config, "block_size", None)
    size = block_size if block_size is not None else known
    if size is None:
        raise ValueError(NO_BLOCKS)
    configured_mask = mask_token if mask_token is not None else getattr(config, "mask_token_id", None)
    stop_tokens = [*stop_tokens, *(getattr(config, "stop_token_ids", None) or [])]
    check_tokenizer(tokenizer, configured_mask, stop_tokens)
    if block_size is not None and known is not None and block_size != known:
        raise ValueError(
            f"block_size={block_size} disagrees with the model config's block_size={known}: leave it out, or change "
            "the model's config.json if you really want to retrain the model with another block size"
        )
    check_block_size(size, "block_size")
    mask_id = mask_token_id(tokenizer, configured_mask)
    if mask_id >= config.vocab_size:
        raise ValueError(
            f"mask_token_id={mask_id} does not fit the model's vocab_size={config.vocab_size}: use a mask token that "
            "the model has an embedding for"
        )
    check_vocabulary(tokenizer, config.vocab_size)
    config.block_size, config.mask_token_id = size, mask_id
    stops = stop_token_ids(tokenizer, stop_tokens)
    config.stop_token_ids = list(stops)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    return ModelSpec(size, mask_id, stops, pad, config.vocab_size, unknown_ids(tokenizer, config.vocab_size, stops))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise ValueError unless a model of so many rows has one for each token."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise ValueError(
            f"the tokenizer has token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), the model's "
            f"vocab_size={rows} ends before it: use the tokenizer that belongs to the model, or resize the model's "
            "embeddings"
        )


def check_block_size(size: int, name: str) -> None:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}={size!r}: a block has a positive whole number of tokens, e.g. 4")
