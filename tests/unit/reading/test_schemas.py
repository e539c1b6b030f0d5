"""Rows in the forms that people have."""

import json
import re
from typing import Any

import pytest

from dirl.reading.schemas import conversation_row, prompt_row

SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}


def message(role: str, content: object = "text") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": SAID},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversation": SAID},
        {"prompt": "q", "completion": "a"},
        {"prompt": SAID[:1], "completion": SAID[1:]},
        {"instruction": "q", "input": "", "output": "a"},
        {"messages": [message("user", [{"type": "text", "text": "q"}]), SAID[1] | {"tool_calls": None}]},
    ],
)
def test_all_forms_give_the_same_conversation(row: dict[str, Any]) -> None:
    found = conversation_row(row, "f:1")
    assert (found.messages, found.tools) == (SAID, None)


def test_a_column_may_have_another_name_and_the_schema_may_be_named() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert conversation_row({"talk": turns}, "f:1", column="talk").messages == SAID
    assert conversation_row({"data": {"talk": SAID}}, "f:1", column="data.talk").messages == SAID
    row = {"messages": [], "prompt": "q", "completion": "a"}
    assert conversation_row(row, "f:1", "prompt_completion").messages == SAID
    with pytest.raises(ValueError, match=r"data.row_schema='chat': use one of auto, messages"):
        conversation_row(row, "f:1", "chat")


def test_systems_and_inputs_are_part_of_it() -> None:
    row = {"instruction": "q", "input": "x", "output": "a", "system": "s"}
    assert conversation_row(row, "f:1").messages == [message("system", "s"), message("user", "q\n\nx"), SAID[1]]


@pytest.mark.parametrize("arguments", [{"x": 1, "y": None}, '{"x": 1}'])
def test_tools_their_calls_and_results_reach_the_template(arguments: object) -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": None}}]
    calls = [{"id": None, "function": {"name": "add", "arguments": arguments}}]
    turns = [SAID[0], {"role": "assistant", "content": None, "tool_calls": calls}, message("tool", "2"), SAID[1]]
    for shown in (tools, json.dumps(tools)):
        found = conversation_row({"messages": turns, "tools": shown}, "f:1")
        assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
        assert found.messages[2] == message("tool", "2")
        assert found.tools == [{"type": "function", "function": {"name": "add"}}]


def test_sharegpts_calls_are_calls() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "a"},
    ]
    found = conversation_row({"conversations": turns}, "f:1").messages
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "assistant"]
    assert found[1]["tool_calls"] == [CALL]


def test_a_good_conversation_comes_back_without_empty_fields() -> None:
    row = {"messages": [message("system", ""), message("user") | {"tool_calls": None}, message("assistant")]}
    assert conversation_row(row, "f:1").messages == [message("system", ""), message("user"), message("assistant")]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"question": 1, "answer": 2}, r"no column 'messages', .*the row has \['answer', 'question'\]"),
        ({"messages": "hello"}, "messages='hello'"),
        ({"messages": []}, r"messages=\[\]"),
        ({"messages": ["hello"]}, r"messages\[0\]='hello'"),
        ({"messages": [message("human")]}, r"messages\[0\]: role='human'; known are system, user, assistant, tool"),
        ({"messages": [message("user", None)]}, r"messages\[0\]: content=None"),
        ({"messages": [message("user", "a" * 500), message("robot", "b")]}, r"messages\[1\]: role='robot'"),
        ({"messages": [message("user", ["a" * 500])]}, r"content has a part 'aaa.*\.\.\. \(502 characters\)"),
        ({"messages": [message("user", [{"type": "image"}])]}, r"content has a part {'type': 'image'}"),
        ({"messages": [message("user"), message("assistant", " \n")]}, r"messages\[1\]: content=' "),
        ({"messages": [message("user"), message("user")]}, r"roles \['user', 'user'\]"),
        ({"messages": [message("user")]}, "the last one assistant"),
        ({"messages": [message("system")]}, r"roles \['system'\]"),
        ({"messages": [message("assistant"), message("user"), message("assistant")]}, "user and assistant in turn"),
        ({"messages": [message("user"), message("tool"), message("assistant")]}, "tool after an assistant with tool"),
        ({"messages": [message("user"), message("assistant") | {"tool_calls": [1]}]}, "tool_calls holds 1; a call has"),
        ({"messages": [message("user") | {"tool_calls": [CALL]}]}, "the user has tool_calls"),
        ({"messages": [message("user") | {"weight": 1}]}, r"fields \['weight'\] would not be used"),
        ({"messages": SAID, "tools": "{"}, "tools='{': not JSON"),
        ({"conversations": [{"from": "robot", "value": "q"}]}, r"conversations\[0\]: from='robot'; known are system"),
        ({"prompt": "q", "completion": ""}, r"\[1\]: content=''"),
    ],
)
def test_a_bad_conversation_names_place_and_finding(row: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=f"^train.jsonl:7.*{found}"):
        conversation_row(row, "train.jsonl:7")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("1/2", "1/2"),
        (4, "4"),
        (4.0, "4"),
        (-0.5, "-0.5"),
        (10**20, "1" + "0" * 20),
        (["$2$"], "$2$"),
        (["2", "$x$"], "\\boxed{2}, \\boxed{x}"),
        (None, None),
        ([], None),
    ],
)
def test_a_truth_becomes_its_text(answer: object, text: str | None) -> None:
    assert prompt_row({"question": "q", "ground_truth_answer": answer}, "f:1").truth == text


def test_a_list_of_truths_is_what_an_answer_must_have_of_boxes() -> None:
    from tests.unit.rewards.samples import sample

    from dirl.rewards import Accuracy

    truth = prompt_row({"question": "q", "ground_truth_answer": ["2", "3"]}, "f:1").truth
    accuracy = Accuracy()
    accuracy.prepare()
    graded = [accuracy(sample(response=r, ground_truth=truth)) for r in ("\\boxed{2, 3}", "\\boxed{2}")]
    assert [value > 0 for value in graded] == [True, False]


def test_columns_may_be_named_nested_ones_too_and_the_others_are_info() -> None:
    row = {
        "problem": [message("system"), message("user")],
        "reward_model": {"ground_truth": "7", "style": "rule"},
        "level": 3,
    }
    found = prompt_row(row, "f:1", "problem", "reward_model.ground_truth")
    assert (found.question, found.truth) == ([message("system"), message("user")], "7")
    assert found.info == {"reward_model": {"ground_truth": "7", "style": "rule"}, "level": 3}
    dotted = {"a.b": "q", "c": "1"}
    assert prompt_row(dotted, "f:1", "a.b", "c").question == "q"
    for name in ("answer", "reward_model.truth", "level.x"):
        found_not = rf"f:1: no column '{re.escape(name)}'; the row has \['level', 'problem'.* name it by answer_column "
        with pytest.raises(ValueError, match=found_not):
            prompt_row(row, "f:1", "problem", name)


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        (" ", "1", "question=' '"),
        (3, "1", "question=3"),
        ([message("user"), message("assistant")], "1", "question: roles .* the last one user or tool"),
        ("q", True, "ground_truth_answer=True"),
        ("q", "", "ground_truth_answer=''"),
        ("q", ["1", None], r"ground_truth_answer=\['1', None\]"),
        ("q", {"a": "b" * 500}, r"ground_truth_answer={'a': 'bbb.*characters\)"),
        ("q", float("nan"), "ground_truth_answer=nan"),
    ],
)
def test_a_bad_prompt_names_place_and_finding(question: object, answer: object, found: str) -> None:
    with pytest.raises(ValueError, match=f"^f.jsonl:3: {found}"):
        prompt_row({"question": question, "ground_truth_answer": answer}, "f.jsonl:3")
