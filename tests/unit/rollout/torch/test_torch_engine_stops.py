"""What the torch engine commits and where a response ends: mask token, stop tokens, limit."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from tests.sdar_engine import (
    MASK,
    STOPS,
    VOCAB,
    answers,
    assert_all_the_same,
    engine_of,
    requests_for,
    some_prompts,
    spec_of,
    tiny_model,
)
from torch import Tensor, nn

from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest, Trajectory

pytestmark = pytest.mark.usefixtures("one_thread")


# --------------------------------------------------------------------------------------------- mask token


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_token_is_never_drawn_even_if_its_logit_is_the_largest(temperature: float) -> None:
    decoding = DecodingParams(threshold=0.5, temperature=temperature, max_response_tokens=12)
    requests = requests_for(some_prompts())
    model = tiny_model()
    expected = answers(engine_of(model, spec_of(4)), requests, decoding)
    engine = engine_of(model, spec_of(4))
    bias = torch.zeros(VOCAB)
    bias[MASK] = 1e4
    engine.model.lm_head.bias = nn.Parameter(bias)
    made = answers(engine, requests, decoding)
    assert all(MASK not in t.response_ids for t in made.values())
    assert_all_the_same(made, expected)


# --------------------------------------------------------------------------------------------------- stops


class Scripted(nn.Module):
    """Stands in for a causal LM: at absolute position i it is sure of token script[i], whatever the input."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.config = SimpleNamespace(num_hidden_layers=1, num_key_value_heads=1, head_dim=1)
        self.certain = 30.0 * torch.eye(VOCAB)[list(script)]
        self.lm_head = nn.Identity()

    def model(self, input_ids: Tensor, position_ids: Tensor, **kwargs: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.certain[position_ids])


def decode_script(prompt: str, response: str, limit: int, block_size: int = 4) -> Trajectory:
    """Letters are tokens, `.` and `!` are stop tokens; the response should fill whole blocks."""
    ids = {"a": 1, "b": 2, "c": 4, ".": STOPS[0], "!": STOPS[1]}
    prompt_ids = tuple(ids[c] for c in prompt)
    engine = TorchEngine()
    engine.setup(tiny_model().config, None, spec_of(block_size), "cpu")
    engine.model, engine.policy_version = Scripted([*prompt_ids, *(ids[c] for c in response)]), 0
    (made,) = engine.generate([GenerationRequest("p", 0, prompt_ids, 0)], DecodingParams(max_response_tokens=limit))
    letters = {index: letter for letter, index in ids.items()}
    assert "".join(letters[i] for i in made.response_ids) == response[: len(made.response_ids)]
    assert len(made.step_map) == len(made.behaviour_logprobs) == len(made.response_ids)
    assert (len(prompt) + len(made.response_ids)) % block_size == 0, "all positions of all decoded blocks"
    return made


@pytest.mark.parametrize(
    ("prompt", "response", "limit", "decoded", "length", "reason"),
    [
        ("abca", "bcabca.bbbbb", 12, 8, 7, "stop"),  # inside the second block, the tail is decoded too
        ("abca", "bca.cccc", 12, 4, 4, "stop"),  # the last position of a block
        ("abca", "b.a!cccc", 12, 4, 2, "stop"),  # the first of several
        ("abca", "bc!.cccc", 12, 4, 3, "stop"),  # any of the stop tokens
        ("abcab", "c.acbbbb", 12, 3, 2, "stop"),  # in a first block that is partly prompt
        ("ab", ".abbbb", 12, 2, 1, "stop"),  # right after a prompt shorter than a block
        ("a.c!", "bcabbbbb", 8, 8, 8, "length"),  # a stop token of the prompt is none
        ("abc.", "bcab", 4, 4, 4, "length"),
        ("ab.", "bcaab.cc", 12, 9, 6, "stop"),  # of a prompt that shares its block with the response
        ("abca", "bcabcabc", 6, 8, 6, "length"),  # the limit is inside a block
        ("abca", "bcabca.c", 6, 8, 6, "length"),  # beyond the limit, in the block of the limit: no stop
        ("abca", "bcabc.ac", 6, 8, 6, "stop"),  # at the limit
        ("abcab", "ca.bcabcccc", 1, 3, 1, "length"),
    ],
)
def test_a_response_ends_at_the_earliest_of_stop_token_and_limit(
    prompt: str, response: str, limit: int, decoded: int, length: int, reason: str
) -> None:
    padded = response + "b" * (-(len(prompt) + len(response)) % 4 + 8)
    made = decode_script(prompt, padded, limit)
    assert (len(made.response_ids), made.response_length, made.finish_reason) == (decoded, length, reason)


def test_all_sure_tokens_of_a_block_are_committed_in_one_step() -> None:
    assert decode_script("abcab", "cab" + "abca.bbb", 11).step_map == (1,) * 11
