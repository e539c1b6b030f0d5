"""The guard before LMDeploy is used: version and sources, on a faked installation; LMDeploy itself is not needed."""

import importlib.metadata
import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from dirl.rollout.lmdeploy import guard as lmdeploy_guard
from dirl.rollout.lmdeploy.guard import TESTED, check_lmdeploy, fingerprint

ABC = "ba7816bf8f01cfea"
"""Of a file that says `abc`: the first 16 digits of FIPS 180-2's example of SHA-256."""


class Installation:
    """A faked LMDeploy 1.2.3 with two files of content `abc`, which is the one tested version besides 1.0.0."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = {
            name: folder / "lmdeploy" / "pytorch" / name for name in ("messages.py", "strategies/sampling.py")
        }
        for path in self.files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("abc")
        self.version: str | None = "1.2.3"
        tested = {"1.0.0": {}, "1.2.3": dict.fromkeys(self.files, ABC)}
        monkeypatch.setattr(lmdeploy_guard, "TESTED", tested)
        monkeypatch.setattr(importlib.metadata, "version", self._version)
        package = ModuleSpec("lmdeploy", loader=None, origin=str(folder / "lmdeploy" / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", {"lmdeploy": package}.get)

    def _version(self, name: str) -> str:
        if name != "lmdeploy" or self.version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.version


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    return Installation(tmp_path, monkeypatch)


def complaint() -> str:
    with pytest.raises(ImportError) as caught:
        check_lmdeploy()
    return str(caught.value)


def test_untouched_files_of_a_tested_version_pass(installation: Installation) -> None:
    check_lmdeploy()


def test_without_lmdeploy_the_extra_and_the_torch_engine_are_named(installation: Installation) -> None:
    installation.version = None
    message = complaint()
    assert "not installed" in message and "1.0.0, 1.2.3" in message
    assert "pip install 'dirl[lmdeploy]'" in message and "dirl.rollout.TorchEngine" in message


@pytest.mark.parametrize("version", ["1.2.4", "1.2", "1.2.3.dev0"])
def test_another_version_is_refused_and_the_supported_ones_are_named(installation: Installation, version: str) -> None:
    installation.version = version
    message = complaint()
    assert f"lmdeploy {version} is installed" in message and "works with 1.0.0, 1.2.3" in message
    assert "pip install lmdeploy==1.2.3" in message and "dirl.rollout.TorchEngine" in message


@pytest.mark.parametrize("name", ["messages.py", "strategies/sampling.py"])
@pytest.mark.parametrize("content", ["abc\n", "", None], ids=["changed", "empty", "missing"])
def test_a_changed_or_missing_file_is_named_and_the_others_are_not(
    installation: Installation, name: str, content: str | None
) -> None:
    if content is None:
        installation.files[name].unlink()
    else:
        installation.files[name].write_text(content)
    message = complaint()
    assert f"differs from the published one in {name}:" in message
    assert "--force-reinstall --no-deps lmdeploy==1.2.3" in message


def test_all_changed_files_are_named(installation: Installation) -> None:
    for path in installation.files.values():
        path.unlink()
    assert "in messages.py, strategies/sampling.py:" in complaint()


def test_a_fingerprint_is_of_the_content_and_empty_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert fingerprint(tmp_path / "file") == ABC
    assert fingerprint(tmp_path / "none") == fingerprint(tmp_path) == ""


def test_every_tested_version_has_the_fingerprint_of_every_file() -> None:
    digits = set("0123456789abcdef")
    assert TESTED
    for files in TESTED.values():
        assert all(len(value) == 16 and set(value) <= digits for value in files.values())
        assert files.keys() == TESTED[max(TESTED)].keys()
