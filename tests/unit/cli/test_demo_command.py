"""The command `demo` looks at its folder before it works."""

from pathlib import Path

import pytest

from dirl.cli.demo import demo


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(ValueError, match=r"output='.*demo-arithmetic-0' cannot be written: .*; name another folder"):
        demo(output=str(tmp_path / "runs"))
