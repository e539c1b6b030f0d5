"""Rows of files become prompts: numbered by row, within the limits, with a place named for what is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest

from dirl.models import ModelDescription, NewModel
from dirl.reading.chat import FitCounts
from dirl.reading.prompts import PromptEncoder
from dirl.tasks import Files
from dirl.types import Prompt

ABOUT_FILES = ("question_column", "answer_column", "system_prompt", "prompt_template")


def prompts_of(path: str, description: ModelDescription, **options: object) -> list[Prompt]:
    """Of the split `train`; options of the task and of the encoder."""
    about_files = {name: options.pop(name) for name in ABOUT_FILES if name in options}
    return Files(path, **about_files).prompts("train", PromptEncoder(description, **options))


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
    prompts = prompts_of(path, description, max_tokens=20, system_prompt="0")
    texts = [description.tokenizer.decode(p.input_ids) for p in prompts]
    assert texts[0] == "<|system|>0<|im_end|><|user|>1+1?<|im_end|><|assistant|>"
    assert texts[1].endswith("<|user|>1<|im_end|><|assistant|>2<|im_end|><|user|>3?<|im_end|><|assistant|>")
    assert [(p.prompt_id, p.question, p.ground_truth) for p in prompts] == [("0", "1+1?", "2"), ("1", "3?", "12")]
    assert all(isinstance(p.input_ids, tuple) for p in prompts)


def test_columns_can_have_other_names(tmp_path: Path, description: ModelDescription) -> None:
    path = data_file(tmp_path, {"problem": "1+1?", "solution": "2"})
    (prompt,) = prompts_of(path, description, max_tokens=20, question_column="problem", answer_column="solution")
    assert (prompt.question, prompt.ground_truth) == ("1+1?", "2")


def test_longer_prompts_are_dropped_and_counted_and_keep_the_numbers_of_the_others(
    tmp_path: Path, description: ModelDescription
) -> None:
    path = data_file(tmp_path, row("1+1?"), row("1+1+1+1?"), row("1+2?"))
    counts = FitCounts()
    prompts = prompts_of(path, description, max_tokens=7, counts=counts)  # 3 special tokens
    assert [p.prompt_id for p in prompts] == ["0", "2"]
    assert (counts.kept, counts.dropped, counts.cut) == (2, 1, 0)


def test_longer_prompts_can_be_an_error(tmp_path: Path, description: ModelDescription) -> None:
    path = data_file(tmp_path, row("1+1?"), row("1+1+1+1?"))
    with pytest.raises(ValueError, match=r"data\.jsonl:2: 11 tokens, max_prompt_tokens=7; raise the limit"):
        prompts_of(path, description, max_tokens=7, overflow="error")


def test_a_limit_that_leaves_no_prompt_is_an_error(tmp_path: Path, description: ModelDescription) -> None:
    path = data_file(tmp_path, row(), row())
    with pytest.raises(
        ValueError,
        match=r"data\.jsonl.*no prompt within max_prompt_tokens=6 is left \(0 within .* 2 dropped\): raise it",
    ):
        prompts_of(path, description, max_tokens=6)


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
        prompts_of(path, description, max_tokens=20)


def test_a_mask_token_by_whatever_name_is_an_error_with_file_and_line(
    tmp_path: Path, description: ModelDescription
) -> None:
    index = description.tokenizer.convert_tokens_to_ids("+")
    named = dataclasses.replace(description, spec=dataclasses.replace(description.spec, mask_token_id=index))
    path = data_file(tmp_path, row("11"), row("1+1"))
    assert len(prompts_of(path, description, max_tokens=20)) == 2
    with pytest.raises(
        ValueError, match=rf"data.jsonl:2.*: holds token {index} \('\+'\), which the model never writes"
    ):
        prompts_of(path, named, max_tokens=20)


def test_no_data_is_an_error(tmp_path: Path, description: ModelDescription) -> None:
    with pytest.raises(ValueError, match=r"data\.jsonl holds no rows"):
        prompts_of(data_file(tmp_path), description, max_tokens=20)
    with pytest.raises(ValueError, match=r"nowhere\.jsonl.*does not exist"):
        prompts_of(str(tmp_path / "nowhere.jsonl"), description, max_tokens=20)


def test_bad_rows_can_be_skipped_and_counted(
    tmp_path: Path, description: ModelDescription, caplog: pytest.LogCaptureFixture
) -> None:
    path = data_file(tmp_path, row(), "text", row(" "), row(answer=None), row("1-1?"), row("1+1+1+1+1?"), row())
    counts = FitCounts()
    options = {"max_tokens": 9, "counts": counts, "on_bad_row": "skip"}
    prompts = prompts_of(path, description, quiet=False, **options)
    assert [p.prompt_id for p in prompts] == ["0", "6"]
    assert counts == FitCounts(kept=2, dropped=1, bad=3, without_truth=1)
    assert "3 rows of" in caplog.text and "data.jsonl:2: a row is an object" in caplog.text
    with pytest.raises(ValueError, match=r"data\.jsonl:6: 13 tokens, max_prompt_tokens=9"):  # too long is not bad
        prompts_of(path, description, overflow="error", **options)
    with pytest.raises(ValueError, match="on_bad_row='drop': use error or skip"):
        prompts_of(path, description, max_tokens=9, on_bad_row="drop")


def test_a_template_is_put_round_the_question_and_other_columns_are_kept(
    tmp_path: Path, description: ModelDescription
) -> None:
    path = data_file(tmp_path, row() | {"level": 3})
    (prompt,) = prompts_of(path, description, max_tokens=20, prompt_template="0 {question} 0")
    assert description.tokenizer.decode(prompt.input_ids) == "<|user|>0 1+1? 0<|im_end|><|assistant|>"
    assert prompt.question == "1+1?" and prompt.info == {"level": 3}


def test_without_files_there_are_no_prompts(tmp_path: Path, description: ModelDescription) -> None:
    task = Files(data_file(tmp_path, row()))
    assert task.prompts("val", PromptEncoder(description, 20)) == []
    assert task.rewards() == [] and task.conversations("train") == []


def test_rows_that_come_from_no_file_are_named_by_their_number(description: ModelDescription) -> None:
    encode = PromptEncoder(description, 20)
    assert [p.prompt_id for p in encode([row(), row("1+2?", 3) | {"level": 1}])] == ["0", "1"]
    with pytest.raises(ValueError, match=r"my task, row 2: no column 'ground_truth_answer'"):
        encode([row(), {"question": "1?"}], name="my task")


def test_a_template_without_a_place_for_the_question_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"prompt_template='add' has no \{question\}"):
        Files("somewhere.jsonl", prompt_template="add")
