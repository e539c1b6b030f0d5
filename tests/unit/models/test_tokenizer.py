"""The tokenizer made from nothing: exact, deterministic, and the same after saving."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

from dirl.models.tokenizer import new_tokenizer

ALPHABET = "0123456789+= \n,.'é🙂\u0301"
AWKWARD = [" 1 + 2\n\n= 3  .,'", "é🙂\u0301", "\n", "1 , 2 . 3 ' 4", "<|user|>1<|im_end|> 2<|MASK|>"]


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def corpus_file(folder: Path) -> Path:
    path = folder / "corpus.txt"
    path.write_text("the cat and the hat\nthat is the cat\n" * 20, encoding="utf-8")
    return path


def test_a_character_has_the_id_of_its_place_in_the_alphabet() -> None:
    tokenizer = new_tokenizer("ba =")
    assert encode(tokenizer, "a = b") == [1, 2, 3, 2, 0]
    assert len(tokenizer) == 4 + 1 + 4 + 3, "characters, <|unk|>, four special tokens, three roles"


def test_a_word_is_one_token_wherever_it_stands_and_the_longest_counts() -> None:
    tokenizer = new_tokenizer("ab+{\n", words=["\\a", "\\ab{", "++"])
    assert encode(tokenizer, "b\\ab{a\\a+++\n") == [1, 6, 0, 5, 7, 2, 4]
    assert tokenizer.decode(encode(tokenizer, "b\\ab{a\\a+++\n")) == "b\\ab{a\\a+++\n"
    assert len(tokenizer) == 5 + 3 + 1 + 4 + 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alphabet": "ab", "words": ["a"]}, r"words=\['a'\]: 'a' is no string of two characters or more"),
        ({"alphabet": "ab", "words": ["ab", "ab"]}, "'ab' .*stands twice"),
        ({"words": ["ab"]}, r"words=\['ab'\] stand beside the characters of an alphabet; give an alphabet"),
    ],
)
def test_words_that_can_be_no_tokens_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_tokenizer(**settings)


def test_a_byte_is_a_token_without_a_corpus() -> None:
    tokenizer = new_tokenizer()
    assert len(tokenizer) == 256 + 4
    assert len(encode(tokenizer, "ab é🙂")) == 3 + 2 + 4
    assert len({index for byte in range(128) for index in encode(tokenizer, chr(byte))}) == 128


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("alphabet", [ALPHABET, None])
def test_decoding_gives_back_the_text(alphabet: str | None, text: str) -> None:
    tokenizer = new_tokenizer(alphabet)
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_merges_of_a_corpus_shorten_its_words_and_decode_exactly(tmp_path: Path) -> None:
    path = corpus_file(tmp_path)
    tokenizer = new_tokenizer(corpus=[path], vocab_size=270)
    assert 260 < len(tokenizer) <= 270
    text = "the cat sat; quite unseen: ü"
    assert len(encode(tokenizer, text)) < len(text.encode())
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert new_tokenizer(corpus=[path], vocab_size=270).get_vocab() == tokenizer.get_vocab()


def test_a_role_is_one_token_in_a_character_tokenizer() -> None:
    tokenizer = new_tokenizer("12+")
    messages = [{"role": "system", "content": "1"}, {"role": "user", "content": "1+1"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>1<|im_end|><|user|>1+1<|im_end|><|assistant|>"
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, text)) == [
        *("<|system|>", "1", "<|im_end|>", "<|user|>", "1", "+", "1", "<|im_end|>", "<|assistant|>")
    ]


def test_a_byte_tokenizer_speaks_chatml() -> None:
    messages = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": " yes"}]
    tokenizer = new_tokenizer()
    full = "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n yes<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == full
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("alphabet", [ALPHABET, None])
def test_it_comes_back_from_a_model_folder_as_it_was_saved(alphabet: str | None, tmp_path: Path) -> None:
    tokenizer = new_tokenizer(alphabet)
    tokenizer.save_pretrained(tmp_path)
    Qwen3Config().save_pretrained(tmp_path)  # a Qwen config must not turn it into Qwen's tokenizer
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for name in ("eos_token_id", "pad_token_id", "mask_token_id", "unk_token_id", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    for text in AWKWARD:
        assert encode(loaded, text) == encode(tokenizer, text)
        assert loaded.decode(encode(loaded, text)) == text


def test_special_tokens_have_their_parts() -> None:
    for tokenizer in (new_tokenizer("ab"), new_tokenizer()):
        parts = (tokenizer.eos_token, tokenizer.pad_token, tokenizer.mask_token)
        assert parts == ("<|im_end|>", "<|endoftext|>", "<|MASK|>")
        assert tokenizer.decode(encode(tokenizer, "a<|MASK|>b<|im_end|>"), skip_special_tokens=True) == "ab"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphabet": ""}, "no characters"),
        ({"alphabet": "abca"}, r"\['a'\] more than once"),
        ({"alphabet": "ab", "vocab_size": 300}, "cannot be combined"),
        ({"vocab_size": 300}, "needs both"),
        ({"corpus": ["missing.txt"], "vocab_size": 300}, r"not a file: \['missing.txt'\]"),
        ({"corpus": ["missing.txt"], "vocab_size": 259}, "vocab_size=259 is too small: 260"),
    ],
)
def test_arguments_that_make_no_tokenizer_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_tokenizer(**arguments)  # type: ignore[arg-type]
