"""Single tokens in words: whole characters as such, parts of one by their bytes, special ones by name."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dirl.models.token_texts import special_ids, token_texts
from dirl.models.tokenizer import END, new_tokenizer


def test_bytes_that_are_no_character_by_themselves_are_shown_by_number() -> None:
    tokenizer = new_tokenizer()
    ids = tokenizer.encode("é a\n€")
    texts = token_texts(tokenizer, ids)
    assert [texts[i] for i in ids] == ["<0xC3>", "<0xA9>", " ", "a", "\n", "<0xE2>", "<0x82>", "<0xAC>"]


def test_a_token_that_ends_within_a_character_keeps_what_is_whole(tmp_path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("x€y€ " * 50, encoding="utf-8")
    tokenizer = new_tokenizer(corpus=[corpus], vocab_size=270)
    texts = token_texts(tokenizer, range(len(tokenizer) - 4))
    whole = [text for text in texts.values() if "€" in text]
    parts = [text for text in texts.values() if "<0x" in text and len(text) > len("<0xE2>")]
    assert whole and parts, texts
    assert "\ufffd" not in "".join(texts.values())


def test_special_tokens_have_their_names() -> None:
    tokenizer = new_tokenizer(alphabet="0123")
    end = tokenizer.eos_token_id
    assert token_texts(tokenizer, [0, end, end]) == {0: "0", end: END}
    assert end in special_ids(tokenizer) and tokenizer.mask_token_id in special_ids(tokenizer)
    assert 0 not in special_ids(tokenizer)


def test_a_space_that_the_decoder_takes_for_a_start_of_text_is_kept() -> None:
    inner = Tokenizer(models.WordLevel({"▁the": 0, "re": 1, "<0xE2>": 2, "?": 3}, unk_token="?"))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert token_texts(tokenizer, range(3)) == {0: " the", 1: "re", 2: "<0xE2>"}


def test_an_id_without_a_token_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match=r"has no token of the id 999; use that of the model"):
        token_texts(new_tokenizer(alphabet="01"), [1, 999])
