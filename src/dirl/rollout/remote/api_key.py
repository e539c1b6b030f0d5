"""The key that a rollout server asks for: read from the environment or a file, never from the command line."""

import hmac
import os
from pathlib import Path


def read_api_key(env: str, file: str | None) -> str | None:
    """The key in `file`, else in the environment variable `env`; None where there is none."""
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"api_key_file={file!r}: no such file; write the key into it, readable by you alone")
        key = path.read_text(encoding="utf-8").strip()
        if not key:
            raise ValueError(f"api_key_file={file!r} is empty: write the key into it")
        return key
    return os.environ.get(env) or None


def authorization(key: str | None) -> dict[str, str]:
    """The header that carries the key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def is_authorized(header: str | None, key: str | None) -> bool:
    """Whether the header of a request carries the key, in time that does not tell how much of it is right."""
    if key is None:
        return True
    return hmac.compare_digest((header or "").encode(), f"Bearer {key}".encode())
