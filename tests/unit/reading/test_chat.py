"""The chat template in tokens: which are trained, where prompts end, what is refused."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dirl.models.special_tokens import check_tokenizer, mask_token_id, stop_token_ids
from dirl.models.tokenizer import new_tokenizer
from dirl.reading.chat import (
    Encoded,
    FitCounts,
    RewrittenHistoryError,
    encode_conversation,
    encode_prompt,
    encode_text,
    encode_turns,
    fit_conversation,
    fit_prompt,
)

THINKING = (
    # Like Qwen3: an answer's thoughts are kept, and made up if there are none, in the last turn only.
    "{% for m in messages %}{% set text = m.content %}{% set thoughts = '' %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set thoughts = text.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set text = text.split('</think>')[-1].strip() %}{% endif %}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{% set text = '<think>\\n' + thoughts + '\\n</think>\\n\\n' + text %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
OPENS_THOUGHTS = (
    # Like reasoning models whose prompt opens the thoughts that an answer then never shows.
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = new_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and one merge, of two line breaks: the end of a prompt could join the start of an answer."""
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE({**vocab, "ĊĊ": 256}, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|MASK|>"])
    template = new_tokenizer().chat_template
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=template)


def parts(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> list[tuple[bool, str]]:
    """Runs of equal loss mask as text."""
    runs: list[tuple[bool, list[int]]] = []
    for token, trained in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if not runs or runs[-1][0] != trained:
            runs.append((trained, []))
        runs[-1][1].append(token)
    return [(trained, tokenizer.decode(ids)) for trained, ids in runs]


def encode(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], **options: Any) -> Encoded:
    return encode_conversation(tokenizer, messages, stop_token_ids(tokenizer), **options)


def test_loss_is_on_each_answer_and_its_end_token() -> None:
    tokenizer = new_tokenizer("12+=")
    encoded = encode(tokenizer, [user("1+1"), assistant("=2"), user("2"), assistant("1")])
    assert [tokenizer.convert_ids_to_tokens(i) for i in encoded.input_ids] == [
        *("<|user|>", "1", "+", "1", "<|im_end|>", "<|assistant|>", "=", "2", "<|im_end|>"),
        *("<|user|>", "2", "<|im_end|>", "<|assistant|>", "1", "<|im_end|>"),
    ]
    assert [int(trained) for trained in encoded.loss_mask] == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert encoded.complete


def test_the_line_break_after_an_end_token_is_context_and_missing_after_the_last() -> None:
    tokenizer = new_tokenizer()
    encoded = encode(
        tokenizer, [{"role": "system", "content": "Be."}, user("a"), assistant("b"), user("c"), assistant("d")]
    )
    assert parts(tokenizer, encoded) == [
        (False, "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),
        (True, "b<|im_end|>"),
        (False, "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"),
        (True, "d<|im_end|>"),
    ]


def test_training_can_be_on_the_last_answer_only() -> None:
    tokenizer = new_tokenizer()
    messages = [user("a"), assistant("b"), user("c"), assistant("d")]
    last = encode(tokenizer, messages, turns="last")
    assert last.input_ids == encode(tokenizer, messages).input_ids
    assert [text for trained, text in parts(tokenizer, last) if trained] == ["d<|im_end|>"]


def test_an_answer_ends_at_the_first_stop_token_after_it() -> None:
    tokenizer = new_tokenizer()
    encoded = encode(tokenizer, [user("a"), assistant("b"), user("<|endoftext|>"), assistant("d")])
    assert [text for trained, text in parts(tokenizer, encoded) if trained] == ["b<|im_end|>", "d<|im_end|>"]


def test_a_prompt_is_tokenised_as_at_inference_even_where_it_would_merge_with_the_answer() -> None:
    tokenizer = merging_tokenizer()
    messages = [user("a"), assistant("\n\nb")]
    prompt, stops = encode_prompt(tokenizer, "a"), stop_token_ids(tokenizer)
    encoded = encode_conversation(tokenizer, messages, stops)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert not any(encoded.loss_mask[: len(prompt)]) and all(encoded.loss_mask[len(prompt) :])
    together = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]
    assert 256 in together and 256 not in encoded.input_ids, "tokenised at once, two line breaks join"


@pytest.mark.parametrize("template", [None, THINKING])
@pytest.mark.parametrize("thinking", [True, False])
def test_the_prompt_is_a_prefix_of_the_conversation(template: str | None, thinking: bool) -> None:
    tokenizer = new_tokenizer("12+") if template is None else tokenizer_with(template)
    options = {"chat_template_kwargs": {"enable_thinking": thinking}}
    prompt = encode_prompt(tokenizer, "1+1", "+2", **options)
    messages = [{"role": "system", "content": "+2"}, user("1+1"), assistant("2")]
    encoded = encode(tokenizer, messages, **options)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.loss_mask.index(True) == len(prompt)


@pytest.mark.parametrize("options", [{}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_empty_thoughts_that_the_template_adds_are_not_trained(options: dict[str, Any]) -> None:
    """A rollout begins behind the prompt, with thinking or without: the answer follows there, and not a block."""
    tokenizer, messages = tokenizer_with(THINKING), [user("a"), assistant("b")]
    encoded = encode(tokenizer, messages, **options)
    prompt = encode_prompt(tokenizer, "a", **options)
    assert encoded.input_ids == prompt + encode_text(tokenizer, "b<|im_end|>")
    assert encoded.loss_mask == [False] * len(prompt) + [True] * 2
    if not options:  # who writes an empty block wants it
        thought = encode(tokenizer, [user("a"), assistant("<think></think>b")])
        assert parts(tokenizer, thought)[1] == (True, "<think>\n\n</think>\n\nb<|im_end|>")


@pytest.mark.parametrize("thinking", [None, True, False])
def test_every_answer_is_trained_behind_the_prompt_of_inference(thinking: bool | None) -> None:
    tokenizer = tokenizer_with(THINKING)
    options = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
    for first in ("b", "<think>so</think>b"):
        messages = [user("a"), assistant(first), user("c"), assistant("d")]
        if thinking is False and first != "b":  # thoughts in the data, and none at inference
            with pytest.raises(RewrittenHistoryError):
                encode_turns(tokenizer, messages, stop_token_ids(tokenizer), **options)
            continue
        examples = encode_turns(tokenizer, messages, stop_token_ids(tokenizer), **options)
        for end in (1, 3):
            prompt = encode_prompt(tokenizer, messages[:end], **options)
            behind = [e for e in examples if e.input_ids[: len(prompt)] == prompt]
            assert any(e.loss_mask[len(prompt)] and not e.loss_mask[len(prompt) - 1] for e in behind)
        answers = [text for example in examples for trained, text in parts(tokenizer, example) if trained]
        assert answers == ["b<|im_end|>" if first == "b" else "<think>\nso\n</think>\n\nb<|im_end|>", "d<|im_end|>"]


def test_answers_that_a_rewriting_template_leaves_whole_are_trained() -> None:
    tokenizer = tokenizer_with(THINKING)
    encoded = encode(tokenizer, [user("a"), assistant("b"), user("c"), assistant("<think>so</think>d")])
    assert [text for trained, text in parts(tokenizer, encoded) if trained] == [
        "b<|im_end|>",
        "<think>\nso\n</think>\n\nd<|im_end|>",
    ]


def test_an_answer_whose_thoughts_the_template_strips_is_refused() -> None:
    tokenizer = tokenizer_with(THINKING)
    messages = [user("a"), assistant("<think>so</think>b"), user("c"), assistant("d")]
    with pytest.raises(ValueError, match=r"f:3: messages\[1\]: the chat template leaves out a part of '<think>so"):
        encode(tokenizer, messages, where="f:3")
    last = encode(tokenizer, messages, turns="last")
    assert [text for trained, text in parts(tokenizer, last) if trained] == ["d<|im_end|>"]


def test_a_template_whose_prompts_are_no_prefix_is_refused_with_a_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"f:3: messages\[1\]: the chat template rewrites history.*<think>.*template that keeps"
    ):
        encode(tokenizer_with(OPENS_THOUGHTS), [user("a"), assistant("<think>so</think>b")], where="f:3")
    tokenizer = tokenizer_with(THINKING)
    with pytest.raises(ValueError, match=r"messages\[1\]: the chat template rewrites history.*one row per assistant"):
        messages = [user("a"), assistant("b"), user("c"), assistant("d")]
        encode(tokenizer, messages, chat_template_kwargs={"enable_thinking": False})


def test_a_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="f:1: no assistant message"):
        encode(new_tokenizer(), [user("a")], where="f:1")


def test_an_unknown_character_is_named() -> None:
    tokenizer = new_tokenizer("12+")
    with pytest.raises(ValueError, match=r"f:2: the tokenizer has no token for \['-', '×'\]"):
        encode_prompt(tokenizer, "1×2-1", where="f:2")
    with pytest.raises(ValueError, match=r"no token for \['3'\]"):
        encode(tokenizer, [user("1+2"), assistant("3")])


def test_an_end_token_that_serves_as_unknown_token_is_no_unknown_character() -> None:
    tokenizer = new_tokenizer("12")
    tokenizer.unk_token = "<|im_end|>"
    assert len(encode_text(tokenizer, "12<|im_end|>")) == 3


def test_special_tokens_inside_a_text_are_refused_where_they_would_act() -> None:
    tokenizer = new_tokenizer()
    with pytest.raises(ValueError, match=r"messages\[1\] \(assistant\) contains \['<\|im_end\|>'\]"):
        encode(tokenizer, [user("a"), assistant("b<|im_end|>c")])
    with pytest.raises(ValueError, match=r"messages\[1\] \(assistant\) contains \['<\|MASK\|>'\]"):
        encode(tokenizer, [user("a"), assistant("fill <|MASK|>")])
    with pytest.raises(ValueError, match=r"messages\[1\] \(assistant\) contains \['<\|unk\|>'\]"):
        encode(new_tokenizer("12"), [user("1"), assistant("1<|unk|>2")])


def test_two_system_messages_are_refused() -> None:
    messages = [{"role": "system", "content": "a"}, user("b")]
    tokenizer = new_tokenizer()
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == (
        "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(ValueError, match="f:1: has a system message, and system_prompt='c'"):
        encode_prompt(tokenizer, messages, "c", where="f:1")


def test_a_template_that_refuses_a_conversation_is_an_error_with_its_words() -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    with pytest.raises(ValueError, match=r"f:1: the chat template refuses roles \['user'\]: system first"):
        encode_prompt(tokenizer_with(template), "a", where="f:1")


def test_the_mask_token_is_found_in_its_order() -> None:
    tokenizer = new_tokenizer()
    declared = tokenizer.mask_token_id
    assert mask_token_id(tokenizer, 7) == 7
    assert mask_token_id(tokenizer, "<|im_start|>") == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert mask_token_id(tokenizer) == declared
    tokenizer.mask_token = None
    assert tokenizer.mask_token_id is None and mask_token_id(tokenizer) == declared, "SDAR's is in the vocabulary only"
    tokenizer.mask_token = "<|im_start|>"
    assert mask_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize(
    ("configured", "found"), [("<mask>", "'<mask>' is not in the vocab"), (-1, "-1 is no token id")]
)
def test_a_mask_token_that_is_none_is_refused(configured: int | str, found: str) -> None:
    with pytest.raises(ValueError, match=f"mask token {found}"):
        mask_token_id(new_tokenizer(), configured)


def bare_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", chat_template=template)


def test_a_tokenizer_without_template_mask_or_end_is_refused() -> None:
    check_tokenizer(new_tokenizer())
    check_tokenizer(new_tokenizer("12"))
    with pytest.raises(ValueError, match="has no chat template; use"):
        check_tokenizer(bare_tokenizer(None))
    with pytest.raises(ValueError, match=r"has no mask token: .*configure the mask token"):
        check_tokenizer(bare_tokenizer("{{ messages[1].content }}"))
    with pytest.raises(ValueError, match=r"none of the known end tokens .*name its end token"):
        check_tokenizer(bare_tokenizer("{{ messages[1].content }}"), mask_token=0)
    with pytest.raises(ValueError, match="is mask token and end token at once"):
        check_tokenizer(new_tokenizer(), mask_token="<|im_end|>")


def test_the_first_stop_token_is_the_one_that_ends_an_answer() -> None:
    tokenizer = new_tokenizer()
    end, text_end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert stop_token_ids(tokenizer) == (end, text_end)
    tokenizer.eos_token = "<|endoftext|>"  # as base models declare it
    assert stop_token_ids(tokenizer) == (end, text_end)
    assert stop_token_ids(tokenizer, ["<|im_start|>", 5, end]) == (
        *(end, text_end),
        *(tokenizer.convert_tokens_to_ids("<|im_start|>"), 5),
    )
    with pytest.raises(ValueError, match="stop token '</s>' is not in the vocabulary"):
        stop_token_ids(tokenizer, ["</s>"])


def test_a_stop_token_beyond_the_vocabulary_ends_no_answer() -> None:
    tokenizer = new_tokenizer()
    messages = [user("a"), assistant("b")]
    stops = stop_token_ids(tokenizer, [5000])
    assert encode_conversation(tokenizer, messages, stops) == encode(tokenizer, messages)


LONG = Encoded([1, 2, 3, 4, 5], [False, False, True, True, True])


def test_a_conversation_at_the_limit_is_kept_whole() -> None:
    counts = FitCounts()
    assert fit_conversation(LONG, 5, "error", counts) is LONG
    assert counts == FitCounts(kept=1)


def test_a_long_conversation_is_cut_or_dropped_and_counted() -> None:
    counts = FitCounts()
    assert fit_conversation(LONG, 4, "cut", counts) == Encoded([1, 2, 3, 4], [False, False, True, True], complete=False)
    assert fit_conversation(LONG, 2, "cut", counts) is None, "nothing to train on is left"
    assert fit_conversation(LONG, 4, "drop", counts) is None
    assert fit_prompt([1, 2, 3], 3, "drop", counts) == [1, 2, 3]
    assert fit_prompt([1, 2, 3], 2, "drop", counts) is None
    assert counts == FitCounts(kept=1, cut=1, dropped=3)
    assert str(counts) == "1 within the length limit, 1 cut, 3 dropped"


def test_a_limit_can_be_an_error() -> None:
    with pytest.raises(ValueError, match="f:4: 5 tokens, max_tokens=4; raise the limit or set overflow to drop or cut"):
        fit_conversation(LONG, 4, "error", where="f:4")
    with pytest.raises(ValueError, match="f:4: 3 tokens, max_prompt_tokens=2; raise the limit or set overflow to drop"):
        fit_prompt([1, 2, 3], 2, "error", where="f:4")
    with pytest.raises(ValueError, match="overflow='cut' is unknown; choose from drop, error"):
        fit_prompt([1, 2, 3], 2, "cut")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_prompt_tokens=0"):
        fit_prompt([1], 0, "drop")
