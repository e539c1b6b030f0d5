"""Which columns of the rows that people have mean what, in conversations and prompts."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dirl.reading.rows import Row, quoted

Message = dict[str, Any]
"""`role` and `content`, and what chat templates take besides: `tool_calls`, `reasoning_content`, `name`, ..."""

RowSchema = Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca"]

ROLES = ("system", "user", "assistant", "tool")
FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
SHAREGPT_ROLES = {
    **{name: name for name in ROLES},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"},
    **{"tool_response": "tool", "function_response": "tool", "function_call": "assistant"},
}
COLUMNS = {"messages": ("messages",), "sharegpt": ("conversations", "conversation")}


@dataclass(frozen=True)
class Conversation:
    """An SFT row, checked: system or nothing, user and assistant in turn (tools between), the assistant last."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    """Descriptions of functions, for the chat template."""


@dataclass(frozen=True)
class PromptRow:
    """What an RL row holds, checked."""

    question: str | list[Message]
    """A text, or messages of which the last is the user's (or a tool's)."""
    truth: str | None
    """None: the row has none."""
    info: dict[str, Any] = field(default_factory=dict)
    """All other columns of the row."""


def conversation_row(row: Row, where: str, schema: RowSchema = "auto", column: str | None = None) -> Conversation:
    """The conversation of an SFT row.

    Args:
        where: names the row in errors.
        schema: how the row holds it; `auto` goes by its columns.
        column: with the conversation, where it is not called `messages` or `conversations`.

    Raises:
        ValueError: no known columns, or what they hold is no conversation.
    """
    if schema not in get_args(RowSchema):
        raise ValueError(f"data.row_schema={schema!r}: use one of {', '.join(get_args(RowSchema))}")
    found = _schema(row, where, column) if schema == "auto" else schema
    if found in COLUMNS:
        name = column or next((name for name in COLUMNS[found] if name in row), COLUMNS[found][0])
        messages, place = _take(row, name, where), f"{where}: {name}"
    elif found == "prompt_completion":
        messages, place = _joined(row, where), where
    else:
        messages, place = _alpaca(row, where), where
    system = row.get("system")
    if found in ("sharegpt", "alpaca") and isinstance(system, str) and system.strip():
        messages = [{"role": "system", "content": system}, *messages] if isinstance(messages, list) else messages
    return Conversation(_conversation(messages, place, last=("assistant",)), _tools(row.get("tools"), where))


def prompt_row(
    row: Row, where: str, question_column: str = "question", answer_column: str = "ground_truth_answer"
) -> PromptRow:
    """Question, truth and all other columns of an RL row.

    Names may be those of nested values (`reward_model.ground_truth`). A number becomes its text. A list of truths holds
    all that an answer must have: one is that one, of several each gets a box.

    Raises:
        ValueError: a column is missing, or holds something else.
    """
    question = _take(row, question_column, where, "question_column")
    if isinstance(question, list):
        question = _conversation(question, f"{where}: {question_column}", last=("user", "tool"))
    elif not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: {question_column}={quoted(question)}; expected a text or a list of messages")
    truth = _truth(_take(row, answer_column, where, "answer_column"), f"{where}: {answer_column}")
    used = {question_column, answer_column}
    return PromptRow(question, truth, {name: value for name, value in row.items() if name not in used})


def _truth(value: object, where: str) -> str | None:
    if value is None or value == []:
        return None
    if isinstance(value, list):
        parts = [_truth(item, where) for item in value]
        if None in parts:
            raise ValueError(f"{where}={quoted(value)}; expected texts or numbers in the list")
        return parts[0] if len(parts) == 1 else ", ".join(f"\\boxed{{{part.strip('$')}}}" for part in parts)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}={quoted(value)}; expected a text or a number")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}={quoted(value)}; expected a finite number or a text")
        return str(int(value)) if value.is_integer() else str(value)
    if not str(value).strip():
        raise ValueError(f"{where}={quoted(value)}; expected a text or a number (null: there is none)")
    return str(value)


def _take(row: Row, name: str, where: str, option: str = "column") -> Any:
    """A column, or a value within one: `reward_model.ground_truth`; `option` is what names it."""
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(
                f"{where}: no column {name!r}; the row has {quoted(sorted(row), 300)}; rename one, or name it by "
                f"{option} (an option of data, or of the task)"
            )
        value = value[part]
    return value


def _schema(row: Row, where: str, column: str | None) -> str:
    if column is not None:
        value = _take(row, column, where)
        first = value[0] if isinstance(value, list) and value else None
        return "sharegpt" if isinstance(first, Mapping) and "from" in first else "messages"
    if "messages" in row:
        return "messages"
    if any(name in row for name in COLUMNS["sharegpt"]):
        return "sharegpt"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "instruction" in row and "output" in row:
        return "alpaca"
    raise ValueError(
        f"{where}: no column 'messages', nor 'conversations', 'prompt' and 'completion', 'instruction' and 'output'; "
        f"the row has {quoted(sorted(row), 300)}; rename one, or name it by data.column"
    )


def _joined(row: Row, where: str) -> list:
    """The messages of a prompt and its completion, which are texts or messages."""
    parts: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = _take(row, name, where)
        parts += value if isinstance(value, list) else [{"role": role, "content": value}]
    return parts


def _alpaca(row: Row, where: str) -> list[Message]:
    asked, given = _take(row, "instruction", where), row.get("input")
    if isinstance(asked, str) and isinstance(given, str) and given.strip():
        asked = f"{asked}\n\n{given}"
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": _take(row, "output", where)}]


def _tools(value: object, where: str) -> list[dict[str, Any]] | None:
    """The tools: descriptions of functions, which may also be JSON texts."""
    if isinstance(value, str) and value.strip():
        value = _json(value, f"{where}: tools")
    if value in (None, "", []):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError(f"{where}: tools={quoted(value)}; expected a list of descriptions of functions, or its JSON")
    return [_without_nulls(tool) for tool in value]


def _conversation(messages: object, where: str, last: tuple[str, ...]) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            f'{where}={quoted(messages)}; expected a list such as [{{"role": "user", "content": "..."}}, ...]'
        )
    checked = [_message(message, f"{where}[{index}]") for index, message in enumerate(messages)]
    turns = checked[1:] if checked[0]["role"] == "system" else checked
    if not turns or turns[-1]["role"] not in last or not _alternate(turns):
        roles = [message["role"] for message in checked]
        raise ValueError(
            f"{where}: roles {quoted(roles, 300)}; expected system or nothing, then user and assistant in turn (tool "
            f"after an assistant with tool_calls), the last one {' or '.join(last)}; reorder, merge or remove messages"
        )
    return checked


def _alternate(turns: list[Message]) -> bool:
    """Whether each message may follow the one before it."""
    before = None
    for message in turns:
        role = message["role"]
        if role == "user":
            fits = before is None or before["role"] == "assistant"
        elif role == "assistant":
            fits = before is not None and before["role"] in ("user", "tool")
        else:
            fits = before is not None and (before["role"] == "tool" or bool(before.get("tool_calls")))
        if role == "system" or not fits:
            return False
        before = message
    return True


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f'{where}={quoted(message)}; a message is an object {{"role": ..., "content": ...}}')
    found = {key: value for key, value in message.items() if value is not None}
    if "from" in found and "role" not in found:
        found = _from_sharegpt(found, where)
    role, content = found.get("role"), found.get("content")
    if role not in ROLES:
        raise ValueError(f"{where}: role={quoted(role)}; known are {', '.join(ROLES)}; rename or remove it")
    calls = _calls(found, where)
    if isinstance(content, list):
        content = _text_of_parts(content, where)
    if content is None and calls:
        content = ""
    may_be_blank = role == "system" or bool(calls)
    if not isinstance(content, str) or not (content.strip() or may_be_blank):
        raise ValueError(f"{where}: content={quoted(content)}; expected a text that is not blank; mend or remove it")
    other = sorted(key for key in found if key not in FIELDS)
    if other:
        raise ValueError(
            f"{where}: fields {quoted(other, 300)} would not be used; put what they say into content or remove them"
        )
    if role != "assistant" and (calls or "reasoning_content" in found):
        raise ValueError(f"{where}: the {role} has tool_calls or reasoning_content; only the assistant may")
    kept = {key: found[key] for key in FIELDS if key in found and key not in ("tool_calls", "content", "role")}
    return {"role": role, "content": content} | ({"tool_calls": calls} if calls else {}) | kept


def _from_sharegpt(message: Mapping[str, Any], where: str) -> Message:
    speaker, text = message["from"], message.get("value")
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"{where}: from={quoted(speaker)}; known are {', '.join(SHAREGPT_ROLES)}; rename or remove it")
    if speaker == "function_call":
        call = _json(text, f"{where}: value")
        return {"role": role, "tool_calls": call if isinstance(call, list) else [call]}
    return {"role": role, "content": text}


def _calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Calls of functions as `{"type": "function", "function": {"name": ..., "arguments": {...}}}`."""
    calls = message.get("tool_calls") or []
    if isinstance(calls, str):
        calls = _json(calls, f"{where}: tool_calls")
    if not isinstance(calls, list):
        raise ValueError(f"{where}: tool_calls={quoted(calls)}; expected a list")
    checked = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}: tool_calls holds {quoted(call)}; a call has a function with name and arguments")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _json(arguments, f"{where}: arguments of {function['name']}")
        named = {"name": function["name"], "arguments": _without_nulls(arguments or {})}
        own = {"id": call["id"]} if call.get("id") else {}
        checked.append({**own, "type": "function", "function": named})
    return checked


def _text_of_parts(parts: list, where: str) -> str:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f'{where}: content has a part {quoted(part)}; only {{"type": "text", "text": ...}} is text'
            )
    return "".join(part["text"] for part in parts)


def _json(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}={quoted(text)}: not JSON ({str(error)[:100]}); mend it") from error


def _without_nulls(value: Any) -> Any:
    """Tables give each row the fields of all rows, null where it has none."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
