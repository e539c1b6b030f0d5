"""Qwen3's own tokenizer and chat template: thoughts, tools, several turns; loss masks, prompts and stop tokens.

The vocabulary in tests/fixtures is cut down. DIRL_QWEN3_TOKENIZER names a folder with the whole of it to run them with.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from tests.unit.reading.test_chat import assistant, parts, user
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config

from dirl.models import AutoregressiveModel, NewModel
from dirl.models.special_tokens import check_tokenizer, mask_token_id, stop_token_ids
from dirl.packing.pieces import Encoded
from dirl.reading.chat import RewrittenHistoryError, encode_conversation, encode_prompt, encode_turns

WHOLE = os.environ.get("DIRL_QWEN3_TOKENIZER")
FOLDER = WHOLE or str(Path(__file__).parents[2] / "fixtures" / "qwen3_tokenizer")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "content": "", "reasoning_content": "I need a sum.", "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
]}  # fmt: skip
RESULT = {"role": "tool", "content": "2", "name": "add"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


def trained(tokenizer: PreTrainedTokenizerBase, examples: list[Encoded]) -> list[str]:
    return [text for example in examples for learned, text in parts(tokenizer, example) if learned]


def turns(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> list[Encoded]:
    return encode_turns(tokenizer, messages, stop_token_ids(tokenizer), **options)


def test_its_stop_tokens_are_the_end_of_a_message_first_and_its_mask_has_to_be_named(tokenizer) -> None:
    stops = tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer)))
    assert stops == ["<|im_end|>", "<|endoftext|>"]
    with pytest.raises(ValueError, match="has no mask token: none declared"):
        check_tokenizer(tokenizer)
    assert mask_token_id(tokenizer, "<|fim_pad|>") == tokenizer.convert_tokens_to_ids("<|fim_pad|>")
    if WHOLE:
        assert (stop_token_ids(tokenizer), mask_token_id(tokenizer, "<|fim_pad|>")) == ((151645, 151643), 151662)


def test_an_answer_with_thoughts_is_trained_whole(tokenizer) -> None:
    for answer in (
        assistant("<think>\none and one\n</think>\n\n2"),
        {**assistant("2"), "reasoning_content": "one and one"},
    ):
        (example,) = turns(tokenizer, [user("1+1?"), answer])
        assert parts(tokenizer, example) == [
            (False, "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"),
            (True, "<think>\none and one\n</think>\n\n2<|im_end|>"),
        ]


@pytest.mark.parametrize(("thinking", "opened"), [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")])
def test_an_answer_without_thoughts_follows_the_prompt_of_a_rollout(tokenizer, thinking, opened: str) -> None:
    options = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
    (example,) = turns(tokenizer, [user("1+1?"), assistant("2")], **options)
    prompt = encode_prompt(tokenizer, "1+1?", **options)
    assert example.input_ids[: len(prompt)] == prompt and example.loss_mask.index(True) == len(prompt)
    assert tokenizer.decode(prompt).endswith(f"<|im_start|>assistant\n{opened}")
    assert trained(tokenizer, [example]) == ["2<|im_end|>"]


def test_thoughts_that_later_turns_do_not_see_make_an_example_of_each_turn(tokenizer) -> None:
    """The template drops them from earlier answers: each is trained behind the history that it has at inference."""
    messages = [
        user("1+1?"),
        assistant("<think>\nso\n</think>\n\n2"),
        user("and 2?"),
        assistant("<think>\nx\n</think>\n\n4"),
    ]
    examples = turns(tokenizer, messages)
    assert trained(tokenizer, examples) == [
        "<think>\nso\n</think>\n\n2<|im_end|>",
        "<think>\nx\n</think>\n\n4<|im_end|>",
    ]
    assert parts(tokenizer, examples[1])[0] == (
        False,
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nand 2?<|im_end|>\n<|im_start|>assistant\n",
    )
    prompt = encode_prompt(tokenizer, messages[:3])
    assert examples[1].input_ids[: len(prompt)] == prompt
    with pytest.raises(RewrittenHistoryError, match=r"messages\[1\]: the chat template leaves out a part of"):
        encode_conversation(tokenizer, messages, stop_token_ids(tokenizer))
    (last,) = turns(tokenizer, messages, turns="last")
    assert last == examples[1]


def test_several_turns_without_thoughts_are_one_example(tokenizer) -> None:
    messages = [user("a"), assistant("b"), user("c"), assistant("<think>\nx\n</think>\n\nd")]
    examples = turns(tokenizer, messages)
    assert trained(tokenizer, examples) == ["b<|im_end|>", "<think>\nx\n</think>\n\nd<|im_end|>"]
    assert len(examples) == 1


def test_calls_of_tools_are_trained_and_their_results_are_not(tokenizer) -> None:
    """Within one question the template keeps the thoughts before a call."""
    messages = [user("1+1?"), CALL, RESULT, {**assistant("2"), "reasoning_content": "done"}]
    (example,) = turns(tokenizer, messages, chat_template_kwargs={"tools": TOOLS})
    found = parts(tokenizer, example)
    assert [learned for learned, _ in found] == [False, True, False, True]
    assert "# Tools" in found[0][1] and '"name": "add"' in found[0][1]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert found[1][1] == f"<think>\nI need a sum.\n</think>\n\n{call}<|im_end|>"
    assert found[2][1] == (
        "\n<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert found[3][1] == "<think>\ndone\n</think>\n\n2<|im_end|>"
    prompt = encode_prompt(tokenizer, messages[:3], chat_template_kwargs={"tools": TOOLS})
    assert example.input_ids[: len(prompt)] == prompt


def test_control_tokens_that_a_user_types_are_text(tokenizer) -> None:
    (example,) = turns(tokenizer, [user("what is <|im_end|>?"), assistant("an end")])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert example.input_ids.count(end) == 2, "the question's own, and the answer's"


def test_a_new_model_may_have_it_with_a_mask_token_of_its_own(tokenizer, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.add_special_tokens({"mask_token": "<|MASK|>"})
    tokenizer.save_pretrained(tmp_path)
    spec = NewModel(tokenizer=str(tmp_path), hidden_size=16, num_attention_heads=2, head_dim=8).describe().spec
    assert spec.mask_token_id == len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens(list(spec.stop_token_ids)) == ["<|im_end|>", "<|endoftext|>"]


def test_a_mask_token_that_is_added_changes_nothing_that_is_read(tokenizer, tmp_path: Path) -> None:
    """As `AutoregressiveModel` adds it: the next id, which is SDAR's 151669 in the whole vocabulary."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    Qwen3Config(vocab_size=max(tokenizer.get_vocab().values()) + 9, **ids, **sizes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    description = AutoregressiveModel(str(tmp_path)).describe()
    assert description.spec.mask_token_id == max(tokenizer.get_vocab().values()) + 1
    if WHOLE:
        assert description.spec.mask_token_id == 151669
    assert description.spec.stop_token_ids == stop_token_ids(tokenizer)
    assert description.spec.unknown_ids[-1] == description.spec.vocab_size - 1, "padding is never drawn"
    tools = {"chat_template_kwargs": {"tools": TOOLS}}
    messages = [user("<|MASK|>?"), CALL, RESULT, {**assistant("2"), "reasoning_content": "done"}]
    (before,), (after,) = (turns(each, messages, **tools) for each in (tokenizer, description.tokenizer))
    assert trained(tokenizer, [before]) == trained(description.tokenizer, [after])
    assert description.spec.mask_token_id not in after.input_ids, "what a user types is text"


def test_calls_of_an_earlier_question_are_kept_and_their_thoughts_are_not(tokenizer) -> None:
    """Tools over several turns: each question's answers stand behind the history that they have at inference."""
    two = {**CALL, "tool_calls": [*CALL["tool_calls"], *CALL["tool_calls"]]}
    first = [user("1+1?"), two, RESULT, RESULT, {**assistant("2"), "reasoning_content": "done"}]
    messages = [*first, user("and 2?"), {**assistant("4"), "reasoning_content": "twice"}]
    tools = {"chat_template_kwargs": {"tools": TOOLS}}
    examples = turns(tokenizer, messages, **tools)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert trained(tokenizer, examples) == [
        f"<think>\nI need a sum.\n</think>\n\n{call}\n{call}<|im_end|>",
        "<think>\ndone\n</think>\n\n2<|im_end|>",
        "<think>\ntwice\n</think>\n\n4<|im_end|>",
    ]
    history = tokenizer.decode(examples[-1].input_ids)
    assert history.count(call) == 2 and history.count("<tool_response>\n2") == 2
    assert "I need a sum." not in history and "done" not in history
    prompt = encode_prompt(tokenizer, messages[:-1], **tools)
    assert examples[-1].input_ids[: len(prompt)] == prompt
