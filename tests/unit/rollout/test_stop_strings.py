"""Strings that end a response: where, that the text up to them is what it would have been, and with fewer tokens."""

import random
from collections.abc import Iterator

import pytest
from tests.tiny import ALPHABET, TinyModel, prompt
from transformers import PreTrainedTokenizerBase

from dirl.evaluation.harness.decoding import cut
from dirl.models import NewModel
from dirl.rollout import RolloutEngine, TorchEngine
from dirl.rollout.response import response_end, response_text
from dirl.rollout.stop_strings import StopStrings
from dirl.types import DecodingParams, GenerationRequest

CHARACTERS = TinyModel().describe().tokenizer


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase = CHARACTERS) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("strings", "text", "end"),
    [
        (["+2"], "01+2=3", 4),
        (["+2"], "01+3=3", None),
        (["=", "+"], "01+2=3", 3),
        (["+"], "+", 1),
        (["+2"], "2+", None),
        (["+2=4", "2"], "1+2", None),  # the one that begins first may yet be completed
        (["+2=4", "2"], "1+2=4", 5),
        (["+2=4", "2"], "1+2=3", 3),
        (["2", "2="], "12=", 2),  # both begin at one place: the shorter
    ],
)
def test_a_response_ends_with_the_token_that_completes_the_string_that_begins_first(
    strings: list[str], text: str, end: int | None
) -> None:
    assert StopStrings(tuple(strings), CHARACTERS).end(ids_of(text)) == end


def test_a_string_of_many_bytes_is_found_in_tokens_that_are_one_byte_each() -> None:
    tokenizer = NewModel().describe().tokenizer
    ids = ids_of("Grüße, Welt: 你好!", tokenizer)
    strings = StopStrings(("你好",), tokenizer)
    assert strings.end(ids) == len(ids) - 1 and strings.end(ids[:-2]) is None
    assert strings.end(ids, begin=len(ids) - 2) == len(ids) - 1, (
        "what was looked at before is read again as it is needed"
    )


@pytest.mark.parametrize(
    ("limit", "end"), [(20, (4, "stop_string")), (4, (4, "stop_string")), (3, (3, "length")), (2, (2, "length"))]
)
def test_the_earliest_of_limit_stop_token_and_string_ends_a_response(limit: int, end: tuple[int, str]) -> None:
    strings, ids = StopStrings(("+2",), CHARACTERS), ids_of("01+2=3")
    assert response_end(ids, (), limit, strings=strings) == end
    assert response_end([*ids[:1], 99, *ids[1:]], (99,), limit, strings=strings) == (2, "stop")


def engine_of(block_size: int) -> TorchEngine:
    source = TinyModel(block_size)
    description = source.describe()
    engine = TorchEngine(max_batch_size=5)
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    engine.update_weights(description.family.weights(source.build(description.config)), 0)
    return engine


def some_strings(seed: int) -> Iterator[str]:
    choose = random.Random(seed)
    for length in (1, 2, 2, 3)[: choose.randrange(1, 5)]:
        yield "".join(choose.choices(ALPHABET, k=length))


def texts_and_tokens(engine: RolloutEngine, strings: tuple[str, ...], block_size: int) -> dict[tuple, tuple[str, int]]:
    requests = [GenerationRequest(f"p{i}", 0, prompt(1 + i, i), seed=i) for i in range(10)]
    decoding = DecodingParams(threshold=0.5, max_response_tokens=40, stop_strings=strings)
    found = {}
    for made in engine.generate(requests, decoding):
        assert strings or made.finish_reason != "stop_string"
        assert len(made.response_ids) - made.response_length < block_size or made.finish_reason == "length"
        found[made.key] = response_text(made, CHARACTERS), len(made.response_ids)
    return found


@pytest.mark.parametrize("block_size", [1, 4])
def test_texts_cut_at_the_first_string_are_those_of_responses_that_go_on_with_fewer_tokens(block_size: int) -> None:
    engine = engine_of(block_size)
    whole = texts_and_tokens(engine, (), block_size)
    shorter = 0
    for seed in range(4):
        strings = tuple(some_strings(seed))
        made = texts_and_tokens(engine, strings, block_size)
        assert {key: cut(text, strings) for key, (text, _) in made.items()} == {
            key: cut(text, strings) for key, (text, _) in whole.items()
        }
        shorter += sum(tokens for _, tokens in whole.values()) - sum(tokens for _, tokens in made.values())
    assert shorter > 400, shorter


def test_strings_are_refused_where_they_are_none_or_there_is_no_tokenizer() -> None:
    for wrong in ("\n", [""], [3]):
        with pytest.raises(ValueError, match=r"decoding\.stop_strings=.*: use a list of strings, none of them empty"):
            DecodingParams(stop_strings=wrong)
    assert DecodingParams(stop_strings=["a"]).stop_strings == ("a",)
    with pytest.raises(ValueError, match=r"decoding\.stop_strings=\['a'\]: .*without a tokenizer"):
        StopStrings.of(("a",), None)
