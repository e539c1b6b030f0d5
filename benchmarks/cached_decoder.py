"""A decoder as SDAR's repository describes its own script: transformers, one sequence at a time, with a KV cache.

Written after that description and not from its code: the prompt's whole blocks are prefilled block-causally; a block of
mask tokens is appended; every denoising step is one forward over that block, after which the cache is cut back to what
was there before; a token is drawn for each of its positions, and the least doubtful of those that are masked are
committed, a fixed number of them or all above a threshold; a last forward over the full block writes its keys.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dirl.types import DecodingParams, GenerationRequest, ModelSpec

Forward = Callable[[Tensor, int], Tensor]


@torch.no_grad()
def decode(
    model: PreTrainedModel, spec: ModelSpec, request: GenerationRequest, decoding: DecodingParams
) -> tuple[list[int], int]:
    """The response, whole blocks of it, and the number of its denoising steps."""
    size, ids = spec.block_size, list(request.prompt_ids)
    torch.manual_seed(request.seed)
    cache = DynamicCache(config=model.config)

    def forward(tokens: Tensor, start: int) -> Tensor:
        return _forward(model, cache, tokens, start, size)

    known = len(ids) // size * size
    if known:
        forward(torch.tensor(ids[:known]), 0)
    steps, end = 0, len(ids) + decoding.max_response_tokens
    while known < end:
        block = torch.full((size,), spec.mask_token_id)
        block[: len(ids) - known] = torch.tensor(ids[known:], dtype=torch.long)
        steps += _denoise(block, known, spec, decoding, cache, forward)
        forward(block, known)
        ids[known:] = block.tolist()
        known += size
        if any(token in spec.stop_token_ids for token in ids[len(request.prompt_ids) :]):
            break
    return ids[len(request.prompt_ids) :], steps


def _denoise(
    block: Tensor, start: int, spec: ModelSpec, decoding: DecodingParams, cache: DynamicCache, forward: Forward
) -> int:
    """Fill the masks of a block [B] in place; returns after how many forwards."""
    steps = 0
    while (masked := block == spec.mask_token_id).any():
        logits = forward(block, start)
        cache.crop(-len(block))
        drawn, confidence = _draw(logits, spec, decoding)
        confidence = torch.where(masked, confidence, -torch.inf)
        chosen = torch.zeros_like(masked)
        dynamic = decoding.strategy == "low_confidence_dynamic"
        count = 1 if dynamic else min(decoding.quota(len(block)), int(masked.sum()))
        chosen[confidence.topk(count).indices] = True
        if dynamic:
            chosen |= confidence >= decoding.threshold
        block[chosen] = drawn[chosen]
        steps += 1
    return steps


def _draw(logits: Tensor, spec: ModelSpec, decoding: DecodingParams) -> tuple[Tensor, Tensor]:
    """A token for each row of logits [B, V], and its probability."""
    logits[:, spec.mask_token_id] = -torch.inf
    if decoding.temperature > 0:
        logits = logits / decoding.temperature
    probabilities = logits.softmax(-1)
    greedy = decoding.temperature == 0
    drawn = probabilities.argmax(-1, keepdim=True) if greedy else torch.multinomial(probabilities, 1)
    return drawn.squeeze(-1), probabilities.gather(-1, drawn).squeeze(-1)


def _forward(model: PreTrainedModel, cache: DynamicCache, tokens: Tensor, start: int, size: int) -> Tensor:
    """Logits [Q, V] of tokens [Q] that stand behind what is cached."""
    positions = torch.arange(start, start + len(tokens))
    mask = torch.arange(start + len(tokens))[None] // size <= positions[:, None] // size
    out = model(
        input_ids=tokens[None],
        attention_mask={"full_attention": mask[None, None]},
        position_ids=positions[None],
        past_key_values=cache,
        use_cache=True,
    )
    return out.logits[0]
