"""Whether prompts and their responses fit what a model has learned of positions, and what an engine has room for."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig

from dirl.rollout.engine import RolloutEngine
from dirl.types import DecodingParams, Prompt


def check_positions(
    prompts: Sequence[Prompt],
    decoding: Mapping[str, DecodingParams],
    config: PreTrainedConfig,
    block_size: int,
    engine: RolloutEngine,
) -> None:
    """Raise ValueError if the longest prompt and a response to it have more positions than the model or the engine.

    Args:
        decoding: by the name of the option that holds it.
    """
    most = getattr(config, "max_position_embeddings", None)
    longest = max((len(prompt.input_ids) for prompt in prompts), default=0)
    for name, one in decoding.items():
        length = -(-(longest + one.max_response_tokens) // block_size) * block_size
        if most is not None and length > most:
            raise ValueError(
                f"{name}.max_response_tokens={one.max_response_tokens}: with the longest prompt ({longest} tokens) "
                f"that is {length} positions in whole blocks, and the model has max_position_embeddings={most}: lower "
                "it, or lower max_prompt_tokens"
            )
        if engine.room is not None and length > engine.room:
            raise ValueError(
                f"{name}.max_response_tokens={one.max_response_tokens}: with the longest prompt ({longest} tokens) "
                f"that is {length} positions in whole blocks, and the engine's cache holds {engine.room}: raise "
                "engine.kv_blocks, or lower one of them"
            )
