"""What a config may hold that a page must not: keys and passwords, and texts that look like them."""

import re

HIDDEN = "(hidden)"

SECRET_NAMES = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|secrets|credentials?|authorization|bearer|"
    r"(?:api|access|private|secret|auth|account|tls|ssh|signing)_?key|token|pat)$",
    re.IGNORECASE,
)
"""The last part of a key's name."""
PLAIN_NAMES = re.compile(r"^(?:mask|stop|eos|bos|pad|unk|end)_token$", re.IGNORECASE)
"""Tokens that are words of a model."""
TEXTS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), f"{HIDDEN}@"),
    (
        re.compile(r"(?i)([?&](?:[\w-]*(?:token|key|secret|signature|password|sig|credential))=)[^&#\s]+"),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?=\S*\d)[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(?:hf|sk|pk|rk|ghp|gho|ghs|ghu|glpat|xox[abprs]|github_pat)[_-][\w-]{16,}"), HIDDEN),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*", re.DOTALL), HIDDEN),
)
"""Passwords within addresses, keys within their queries, headers, tokens by the beginnings that services give them."""


def without_secrets(name: str, value: str) -> str:
    """The value of a setting as it may be shown.

    Args:
        name: of the setting, dotted.
    """
    last = re.sub(r"\[\d+\]", "", name).rsplit(".", 1)[-1]
    if SECRET_NAMES.search(last) and not PLAIN_NAMES.match(last) and value not in ("null", "", "[]", "{}"):
        return HIDDEN
    return hide_in_text(value)


def hide_in_text(text: str) -> str:
    for pattern, instead in TEXTS:
        text = pattern.sub(instead, text)
    return text
