"""The plainest decoder with our semantics: one sequence at a time, the whole of it computed again at every step."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dirl.attention import dense_mask
from dirl.batches import Layout
from dirl.diffusion.commit import commit
from dirl.diffusion.sampling import candidates, scaled_logits, uniform
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory


@torch.no_grad()
def decode(
    backbone: PreTrainedModel, spec: ModelSpec, request: GenerationRequest, decoding: DecodingParams
) -> Trajectory:
    """One trajectory, token for token that of the torch engine. No cache, no batch."""
    size, prompt = spec.block_size, len(request.prompt_ids)
    tokens = torch.tensor(request.prompt_ids)
    steps, logprobs = torch.zeros(prompt, dtype=torch.long), torch.zeros(prompt)
    while True:
        missing = size - len(tokens) % size
        tokens = torch.cat([tokens, torch.full((missing,), spec.mask_token_id)])
        steps = torch.cat([steps, torch.zeros(missing, dtype=torch.long)])
        logprobs = torch.cat([logprobs, torch.zeros(missing)])
        _denoise_last_block(backbone, spec, request.seed, decoding, tokens, steps, logprobs)
        end = _end(tokens[prompt:].tolist(), spec, decoding)
        if end is not None:
            break
    return Trajectory(
        request.prompt_id,
        request.sample_index,
        request.prompt_ids,
        response_ids=tuple(tokens[prompt:].tolist()),
        response_length=end[0],
        step_map=tuple(steps[prompt:].tolist()),
        behaviour_logprobs=tuple(logprobs[prompt:].tolist()),
        finish_reason=end[1],
        policy_version=0,
    )


def _denoise_last_block(
    backbone: PreTrainedModel,
    spec: ModelSpec,
    seed: int,
    decoding: DecodingParams,
    tokens: Tensor,
    steps: Tensor,
    logprobs: Tensor,
) -> None:
    """Fill the masked positions of the last block in place, with the step and log-probability of each."""
    positions = torch.arange(len(tokens))
    zero = torch.zeros_like(positions)
    mask = dense_mask(Layout(zero, zero, positions // spec.block_size, zero))[None, None]
    masked = (tokens == spec.mask_token_id) & (positions >= len(tokens) - spec.block_size)
    forward = 0
    while masked.any():
        hidden = backbone.model(input_ids=tokens[None], position_ids=positions[None], attention_mask=mask)
        at = masked.nonzero().squeeze(1)
        logits = backbone.lm_head(hidden.last_hidden_state[0, at])
        z = scaled_logits(logits.float(), spec.banned, decoding.temperature)
        noise = uniform(torch.tensor(seed), at, torch.tensor(forward))
        drawn, found, confidence = candidates(z, noise, decoding)
        chosen = commit(confidence[None], torch.ones(1, len(at), dtype=torch.bool), decoding, spec.block_size)[0]
        forward += 1
        tokens[at[chosen]], logprobs[at[chosen]], steps[at[chosen]] = drawn[chosen], found[chosen], forward
        masked[at[chosen]] = False


def _end(response: list[int], spec: ModelSpec, decoding: DecodingParams) -> tuple[int, str] | None:
    """Length and reason where the response ends: at its first stop token or at the limit; None: it goes on."""
    limit = decoding.max_response_tokens
    stop = next((i + 1 for i, token in enumerate(response[:limit]) if token in spec.stop_token_ids), None)
    if stop is not None:
        return stop, "stop"
    return (limit, "length") if len(response) >= limit else None
