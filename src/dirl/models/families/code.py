"""Python files in an exported folder, with which plain transformers runs a model that it does not know."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class RemoteCode:
    """The code of an exported model, which transformers runs with `trust_remote_code=True`."""

    auto_map: Mapping[str, str]
    """What config.json says of it: transformers' Auto class -> MODULE.CLASS."""
    files: Mapping[str, bytes]
    """The files by name, with their content."""


@cache
def sdar_files() -> Mapping[str, bytes]:
    folder = resources.files("dirl.models.remote_code")
    return {name: (folder / name).read_bytes() for name in ("configuration_sdar.py", "modeling_sdar.py")}
