"""Prompts: the stream is a permutation per pass, whatever the number of ranks; loading says what it refuses."""

import dataclasses
import json
from itertools import islice
from pathlib import Path

import pytest

from dirl.data.chat import FitCounts
from dirl.data.prompts import PromptStream, load_prompts
from dirl.models import ModelDescription, NewModel
from dirl.types import Prompt

PROMPTS = [Prompt(str(i), (i,), f"question {i}", str(i)) for i in range(7)]


def taken(stream: PromptStream, count: int) -> list[str]:
    return [prompt.prompt_id for prompt in islice(stream, count)]


# --------------------------------------------------------------------------------------------------- stream


def test_every_pass_is_a_permutation_of_its_own() -> None:
    ids = taken(PromptStream(PROMPTS, seed=3), 35)
    passes = [ids[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(one) == [p.prompt_id for p in PROMPTS] for one in passes)
    assert len({tuple(one) for one in passes}) == 5


def test_the_order_is_that_of_the_seed() -> None:
    assert taken(PromptStream(PROMPTS, seed=3), 20) == taken(PromptStream(PROMPTS, seed=3), 20)
    assert taken(PromptStream(PROMPTS, seed=3), 20) != taken(PromptStream(PROMPTS, seed=4), 20)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_turns_in_the_one_stream(world_size: int) -> None:
    one = taken(PromptStream(PROMPTS, seed=3), 24)
    ranks = [taken(PromptStream(PROMPTS, 3, rank, world_size), 24 // world_size) for rank in range(world_size)]
    assert [prompt_id for turn in zip(*ranks, strict=True) for prompt_id in turn] == one


@pytest.mark.parametrize("place", [0, 5, 7, 11])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_stream_goes_on_where_it_was(place: int, world_size: int) -> None:
    rank = world_size - 1
    stream = PromptStream(PROMPTS, 3, rank, world_size)
    taken(stream, place)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PromptStream(PROMPTS, 3, rank, world_size)
    resumed.load_state_dict(state)
    assert taken(resumed, 20) == taken(stream, 20)


def test_a_used_stream_can_go_back_to_an_older_state() -> None:
    stream = PromptStream(PROMPTS, seed=3)
    state, first = stream.state_dict(), taken(stream, 10)
    taken(stream, 8)
    stream.load_state_dict(state)
    assert taken(stream, 10) == first


# -------------------------------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def description() -> ModelDescription:
    return NewModel(alphabet="0123456789+? ").describe()


def data_file(folder: Path, *rows: object, name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(question: object = "1+1?", answer: object = 2) -> dict[str, object]:
    return {"question": question, "ground_truth_answer": answer}


def test_prompts_are_in_the_chat_template_and_numbered_by_row(tmp_path: Path, description: ModelDescription) -> None:
    turns = [("user", "1"), ("assistant", "2"), ("user", "3?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = data_file(tmp_path, row(), row(messages, "12"))
    prompts = load_prompts(path, description, "train", max_tokens=20, system_prompt="0")
    texts = [description.tokenizer.decode(p.input_ids) for p in prompts]
    assert texts[0] == "<|system|>0<|im_end|><|user|>1+1?<|im_end|><|assistant|>"
    assert texts[1].endswith("<|user|>1<|im_end|><|assistant|>2<|im_end|><|user|>3?<|im_end|><|assistant|>")
    assert [(p.prompt_id, p.question, p.ground_truth) for p in prompts] == [("0", "1+1?", "2"), ("1", "3?", "12")]
    assert all(isinstance(p.input_ids, tuple) for p in prompts)


def test_columns_can_have_other_names(tmp_path: Path, description: ModelDescription) -> None:
    path = data_file(tmp_path, {"problem": "1+1?", "solution": "2"})
    (prompt,) = load_prompts(path, description, "train", max_tokens=20, columns=("problem", "solution"))
    assert (prompt.question, prompt.ground_truth) == ("1+1?", "2")


def test_longer_prompts_are_dropped_and_counted_and_keep_the_numbers_of_the_others(
    tmp_path: Path, description: ModelDescription
) -> None:
    path = data_file(tmp_path, row("1+1?"), row("1+1+1+1?"), row("1+2?"))
    counts = FitCounts()
    prompts = load_prompts(path, description, "train", max_tokens=7, counts=counts)  # 3 special tokens
    assert [p.prompt_id for p in prompts] == ["0", "2"]
    assert (counts.kept, counts.dropped, counts.cut) == (2, 1, 0)


def test_longer_prompts_can_be_an_error(tmp_path: Path, description: ModelDescription) -> None:
    path = data_file(tmp_path, row("1+1?"), row("1+1+1+1?"))
    with pytest.raises(ValueError, match=r"data\.jsonl:2: 11 tokens, max_tokens=7; raise the limit"):
        load_prompts(path, description, "train", max_tokens=7, overflow="error")


def test_a_limit_that_leaves_no_prompt_is_an_error(tmp_path: Path, description: ModelDescription) -> None:
    path = data_file(tmp_path, row(), row())
    with pytest.raises(
        ValueError,
        match=r"data\.jsonl.*no prompt within max_prompt_tokens=6 is left \(0 within .* 2 dropped\): raise it",
    ):
        load_prompts(path, description, "train", max_tokens=6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": "1?"}, r"no column 'ground_truth_answer'; the row has \['question'\]"),
        ({"problem": "1?", "ground_truth_answer": 1}, "no column 'question'"),
        (row(" "), "question=' '; expected a text"),
        (row([{"role": "assistant", "content": "1"}]), "the last one user"),
        (row(answer=""), "ground_truth_answer=''; expected"),
        (row("1-1?"), r"no token for \['-'\]"),
        (row("1<|MASK|>"), r"no token for \['<', '>', 'A', 'K', 'M', 'S', '\|'\]"),
        ("text", "a row is an object"),
    ],
)
def test_a_bad_row_is_an_error_with_file_and_line(
    bad: object, message: str, tmp_path: Path, description: ModelDescription
) -> None:
    path = data_file(tmp_path, row(), bad, row())
    with pytest.raises(ValueError, match=rf"data\.jsonl:2.*{message}"):
        load_prompts(path, description, "train", max_tokens=20)


def test_a_mask_token_by_whatever_name_is_an_error_with_file_and_line(
    tmp_path: Path, description: ModelDescription
) -> None:
    index = description.tokenizer.convert_tokens_to_ids("+")
    named = dataclasses.replace(description, spec=dataclasses.replace(description.spec, mask_token_id=index))
    path = data_file(tmp_path, row("11"), row("1+1"))
    assert len(load_prompts(path, description, "train", max_tokens=20)) == 2
    with pytest.raises(
        ValueError, match=rf"data.jsonl:2.*: holds token {index} \('\+'\), which the model never writes"
    ):
        load_prompts(path, named, "train", max_tokens=20)


def test_no_data_is_an_error(tmp_path: Path, description: ModelDescription) -> None:
    with pytest.raises(ValueError, match=r"data\.jsonl holds no rows"):
        load_prompts(data_file(tmp_path), description, "train", max_tokens=20)
    with pytest.raises(ValueError, match=r"nowhere\.jsonl.*does not exist"):
        load_prompts(str(tmp_path / "nowhere.jsonl"), description, "train", max_tokens=20)


def test_bad_rows_can_be_skipped_and_counted(
    tmp_path: Path, description: ModelDescription, caplog: pytest.LogCaptureFixture
) -> None:
    path = data_file(tmp_path, row(), "text", row(" "), row(answer=None), row("1-1?"), row("1+1+1+1+1?"), row())
    counts = FitCounts()
    options = {"max_tokens": 9, "counts": counts, "on_bad_row": "skip"}
    prompts = load_prompts(path, description, "train", quiet=False, **options)
    assert [p.prompt_id for p in prompts] == ["0", "6"]
    assert counts == FitCounts(kept=2, dropped=1, bad=3, without_truth=1)
    assert "3 rows of" in caplog.text and "data.jsonl:2: a row is an object" in caplog.text
    with pytest.raises(ValueError, match=r"data\.jsonl:6: 13 tokens, max_tokens=9"):  # too long is not bad
        load_prompts(path, description, "train", overflow="error", **options)
    with pytest.raises(ValueError, match="on_bad_row='drop': use error or skip"):
        load_prompts(path, description, "train", max_tokens=9, on_bad_row="drop")


def test_a_template_is_put_round_the_question_and_other_columns_are_kept(
    tmp_path: Path, description: ModelDescription
) -> None:
    path = data_file(tmp_path, row() | {"level": 3})
    (prompt,) = load_prompts(path, description, "train", max_tokens=20, template="0 {question} 0")
    assert description.tokenizer.decode(prompt.input_ids) == "<|user|>0 1+1? 0<|im_end|><|assistant|>"
    assert prompt.question == "1+1?" and prompt.info == {"level": 3}
