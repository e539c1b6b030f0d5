"""TLS between trainers and rollout servers: certificates from files, checked before anything is loaded."""

import ssl
from collections.abc import Sequence
from pathlib import Path


def client_tls(ca: str | None, urls: Sequence[str]) -> ssl.SSLContext:
    """What the trainer checks servers with: those whom `ca` vouches for, else those whom the system trusts."""
    if ca is None:
        return ssl.create_default_context()
    if not any(url.startswith("https:") for url in urls):
        raise ValueError(f"engine.tls_ca={ca!r} without a server by https: write engine.urls as https://...")
    _check_file("engine.tls_ca", ca)
    try:
        return ssl.create_default_context(cafile=Path(ca).expanduser())
    except ssl.SSLError as error:
        raise ValueError(f"engine.tls_ca={ca!r} is no certificate (PEM): {error}") from error


def server_tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """What a server shows who it is with; None: it speaks plain HTTP."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError(f"tls_certificate={certificate!r} and tls_key={key!r}: give both, or none")
    _check_file("tls_certificate", certificate)
    _check_file("tls_key", key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(Path(certificate).expanduser(), Path(key).expanduser())
    except ssl.SSLError as error:
        raise ValueError(
            f"tls_certificate={certificate!r} and tls_key={key!r} are no certificate and its key (PEM): {error}"
        ) from error
    return context


def _check_file(name: str, path: str) -> None:
    if not Path(path).expanduser().is_file():
        raise ValueError(f"{name}={path!r}: no such file")
