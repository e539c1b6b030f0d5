"""Prompts and responses within the positions of a model, and tokens within its vocabulary."""

import json
from pathlib import Path

import pytest

from dirl.cli import commands
from dirl.models import NewModel
from dirl.models.source import resolve_spec
from dirl.rollout import LMDeployEngine, TorchEngine
from dirl.rollout.lengths import check_positions
from dirl.types import DecodingParams, Prompt


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(str(i), tuple(range(length)), "q", "a") for i, length in enumerate(lengths)]


def test_the_longest_prompt_and_a_response_fit_in_whole_blocks() -> None:
    config = NewModel(max_position_embeddings=64).describe().config
    check_positions(prompts(3, 40), {"decoding": DecodingParams(max_response_tokens=24)}, config, 4, TorchEngine())
    found = r"greedy\.max_response_tokens=24: with the longest prompt \(41 tokens\) that is 68 positions .*=64: lower"
    with pytest.raises(ValueError, match=found):
        check_positions(prompts(41, 3), {"greedy": DecodingParams(max_response_tokens=24)}, config, 4, TorchEngine())


def test_what_the_cache_of_the_engine_holds_is_looked_at_too() -> None:
    engine = LMDeployEngine(kv_blocks=16, page_tokens=16)
    config = NewModel(max_position_embeddings=512).describe().config
    check_positions(prompts(200), {"decoding": DecodingParams(max_response_tokens=24)}, config, 4, engine)
    with pytest.raises(ValueError, match=r"228 positions in whole blocks, and the engine's cache holds 224: raise"):
        check_positions(prompts(201), {"decoding": DecodingParams(max_response_tokens=24)}, config, 4, engine)


def test_commands_say_so_before_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "rl.jsonl"
    data.write_text(json.dumps({"question": "1+1?", "ground_truth_answer": 2}) + "\n")
    monkeypatch.setattr(NewModel, "build", lambda *_: pytest.fail("built the model"))
    source = NewModel(max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"decoding\.max_response_tokens=256: .*max_position_embeddings=64"):
        commands.rollout(source, commands.PromptData(str(data)), str(tmp_path / "out.jsonl"), TorchEngine())


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    description = NewModel(alphabet="ab").describe()
    description.config.vocab_size -= 1
    with pytest.raises(
        ValueError, match=r"the tokenizer has token \d+ \('.*'\), the model's vocab_size=\d+ ends before"
    ):
        resolve_spec(description.config, description.tokenizer, 4, None, [])
