"""Keys and passwords of a config are hidden, and nothing else is."""

import pytest

from dirl.report.secrets import HIDDEN, hide_in_text, without_secrets


@pytest.mark.parametrize(
    "name",
    ["logger.init_args.api_key", "x.password", "token", "a.hf_token", "aws_secret", "a.private_key", "b.WANDB_API_KEY"],
)
def test_settings_with_the_name_of_a_secret_are_hidden(name: str) -> None:
    assert without_secrets(name, "0123") == HIDDEN
    assert without_secrets(name, "null") == "null", "that there is none is no secret"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "data.token_budget",
            "source.mask_token",
            "stop_tokens[0]",
            "serve.api_key_env",
            "engine.api_key_file",
            "keys",
        ),
        *("data.max_tokens", "tokenizer", "rollout.path", "model.key_value_heads"),
    ],
)
def test_other_settings_are_shown(name: str) -> None:
    assert without_secrets(name, "0123") == "0123"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host:80/a?b=1", "https://(hidden)@host:80/a?b=1"),
        ("https://host/x?access_token=abc&b=1", "https://host/x?access_token=(hidden)&b=1"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer (hidden)"),
        ("use hf_abcdefghijklmnopqrst now", "use (hidden) now"),
        ("AKIAABCDEFGHIJKLMNOP", "(hidden)"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc", "(hidden)"),
        ("12+34=46, basic arithmetic", "12+34=46, basic arithmetic"),
        ("sk-learn and hf_hub", "sk-learn and hf_hub"),
    ],
)
def test_texts_that_look_like_secrets_are_hidden(text: str, shown: str) -> None:
    assert hide_in_text(text) == shown
