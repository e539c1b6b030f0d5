"""How a task of lm-evaluation-harness wants to be answered: decoding by its generation_kwargs, and stop sequences."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dirl.tasks.lm_eval import DECIDED
from dirl.types import DecodingParams

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names for the length of a response, the first of them counts."""
OVERRULED = {"temperature": "temperature", "max_response_tokens": "max_gen_toks", "stop_strings": "until"}
"""Options of decoding that a task says itself, and their names among its generation_kwargs."""
DEFAULT_LENGTH = 256
"""The limit of length that lm_eval has where a task says nothing."""


def decoding_of(base: DecodingParams, asked: Mapping[str, Any]) -> DecodingParams:
    """The decoding with temperature, cuts and length of a task; greedy, as in lm_eval, unless it says otherwise."""
    temperature = float(asked.get("temperature") or 0.0)
    if asked.get("do_sample") is False:
        temperature = 0.0
    elif asked.get("do_sample") and "temperature" not in asked:
        temperature = 1.0
    lengths = [int(asked[name]) for name in LENGTHS if asked.get(name) is not None]
    cuts: dict[str, Any] = {}
    if temperature > 0:
        cuts = {name: asked[name] for name in ("top_p", "min_p") if asked.get(name) is not None}
        cuts |= {"top_k": max(0, int(asked["top_k"]))} if asked.get("top_k") is not None else {}
    length = (lengths or [DEFAULT_LENGTH])[0]
    cuts["stop_strings"] = tuple(stop_sequences(asked))
    return dataclasses.replace(base, temperature=temperature, max_response_tokens=length, **cuts)


def check_decoding(name: str, base: DecodingParams) -> None:
    """Raise ValueError for a setting that a task decides itself."""
    default = DecodingParams()
    for option, kwarg in OVERRULED.items():
        if (value := getattr(base, option)) != getattr(default, option):
            raise ValueError(
                f"decoding.{name}.{option}={value}: tasks of lm_eval say that themselves; to overrule them, leave it "
                f"out and write --task.generation_kwargs '{{{kwarg}: {value}}}'"
            )


def stop_sequences(asked: Mapping[str, Any]) -> list[str]:
    until = asked.get("until") or []
    return [text for text in ([until] if isinstance(until, str) else until) if text]


def ignored(asked: Mapping[str, Any]) -> list[str]:
    """What a task says that no engine obeys."""
    return [name for name in asked if name not in DECIDED and name not in LENGTHS]


def cut(text: str, until: Sequence[str]) -> str:
    """The text up to, and without, the first stop sequence in it."""
    places = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
