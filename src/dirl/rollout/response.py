"""Where a response ends, the trajectory that is made of it, and its text: one rule for all engines."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from dirl.rollout.stop_strings import StopStrings
from dirl.types import FinishReason, GenerationRequest, Trajectory


def response_end(
    response_ids: Sequence[int],
    stop_token_ids: Collection[int],
    limit: int,
    begin: int = 0,
    strings: StopStrings | None = None,
) -> tuple[int, FinishReason] | None:
    """The `response_length` and why it is that: at the earliest of stop token, length limit and the token that
    completes a stop string. None: it goes on.

    Args:
        response_ids: of whole blocks.
        limit: most tokens of a response.
        begin: place before which there is no stop token, and no stop string is complete.
    """
    places = (i + 1 for i in range(begin, len(response_ids)) if response_ids[i] in stop_token_ids)
    stop = next(places, None)
    if strings is not None:
        text_ids = response_ids[: limit if stop is None else min(limit, stop - 1)]
        if (end := strings.end(text_ids, begin)) is not None:
            return end, "stop_string"
    if stop is not None and stop <= limit:
        return stop, "stop"
    return (limit, "length") if len(response_ids) >= limit else None


def finished_trajectory(
    request: GenerationRequest,
    response_ids: Sequence[int],
    step_map: Sequence[int],
    logprobs: Sequence[float],
    end: tuple[int, FinishReason],
    policy_version: int,
) -> Trajectory:
    """The trajectory of a request, from every position of its decoded blocks and its `response_end`."""
    return Trajectory(
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_ids=request.prompt_ids,
        response_ids=tuple(response_ids),
        response_length=end[0],
        step_map=tuple(step_map),
        behaviour_logprobs=tuple(logprobs),
        finish_reason=end[1],
        policy_version=policy_version,
    )


def response_text(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase) -> str:
    """The decoded response up to, without, the stop token."""
    ids = trajectory.text_ids
    if trajectory.finish_reason == "stop":
        ids = ids[:-1]
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    assert isinstance(text, str)
    return text
