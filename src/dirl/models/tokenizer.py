"""Make a tokenizer from nothing: one token per character of an alphabet, or byte-level BPE."""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, START, END, MASK, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>", "<|unk|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
COMPACT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""One token per role and no line breaks: a small model's context goes to the task."""


def new_tokenizer(
    alphabet: str | None = None,
    corpus: Sequence[str | Path] | None = None,
    vocab_size: int | None = None,
    mask: bool = True,
    words: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A tokenizer with chat template, end, pad and mask token; decoding gives back the text exactly.

    Special tokens take the ids after the characters, bytes and merges.

    Args:
        alphabet: one token per character, id = place in the alphabet. Other characters become `<|unk|>`,
            which `dirl.reading.chat` refuses. None: byte-level BPE, which knows every text.
        corpus: UTF-8 text files to learn merges from; without it every byte is one token.
        vocab_size: the most tokens to have with a corpus, bytes and special tokens included.
        mask: whether it has a mask token; that of an autoregressive model has none.
        words: beside an alphabet, strings such as `\\boxed{` that are one token each wherever they stand in a text;
            their ids follow those of the characters.
    """
    masks = (MASK,) if mask else ()
    if alphabet is not None:
        if corpus is not None or vocab_size is not None:
            raise ValueError(
                "alphabet cannot be combined with corpus or vocab_size: a character tokenizer has no merges"
            )
        special = (PAD, START, END, *masks, UNKNOWN, *ROLE_TOKENS)
        return _wrap(_character_tokenizer(alphabet, words), special, COMPACT_TEMPLATE)
    if words:
        raise ValueError(f"words={list(words)} stand beside the characters of an alphabet; give an alphabet, too")
    special = (PAD, START, END, *masks)
    return _wrap(_byte_tokenizer(corpus, vocab_size, len(special)), special, CHATML_TEMPLATE)


def _character_tokenizer(alphabet: str, words: Sequence[str]) -> Tokenizer:
    if not alphabet:
        raise ValueError(
            "alphabet='' has no characters; name those of the task, or leave it out for a byte-level tokenizer"
        )
    repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
    if repeated:
        raise ValueError(f"alphabet={alphabet!r} holds {repeated} more than once; name each character once")
    for word in words:
        if len(word) < 2 or words.count(word) > 1:
            raise ValueError(f"words={list(words)}: {word!r} is no string of two characters or more, or stands twice")
    vocab = {token: index for index, token in enumerate((*alphabet, *words))}
    tokenizer = Tokenizer(models.WordLevel({**vocab, UNKNOWN: len(vocab)}, unk_token=UNKNOWN))
    longest_first = map(re.escape, sorted(words, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*longest_first, r"[\s\S]"])), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _byte_tokenizer(corpus: Sequence[str | Path] | None, vocab_size: int | None, specials: int) -> Tokenizer:
    if (corpus is None) != (vocab_size is None):
        raise ValueError(
            f"corpus={corpus!r} and vocab_size={vocab_size!r}: learning merges needs both; give both or neither"
        )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if corpus is not None and vocab_size is not None:
        _learn_merges(tokenizer, corpus, vocab_size, alphabet, specials)
    return tokenizer


def _learn_merges(
    tokenizer: Tokenizer, corpus: Sequence[str | Path], vocab_size: int, alphabet: list[str], specials: int
) -> None:
    least = len(alphabet) + specials
    if vocab_size < least:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: {least} are bytes and special tokens; give at least that"
        )
    missing = [str(path) for path in corpus if not Path(path).is_file()]
    if missing or not corpus:
        raise ValueError(
            f"corpus={[str(path) for path in corpus]}: not a file: {missing}; name existing UTF-8 text files"
        )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(path) for path in corpus], trainer)


def _wrap(tokenizer: Tokenizer, special: Sequence[str], template: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = {PAD, END, MASK, UNKNOWN}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        mask_token=MASK if MASK in special else None,
        unk_token=UNKNOWN if UNKNOWN in special else None,
        extra_special_tokens=[token for token in special if token not in named],
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )
