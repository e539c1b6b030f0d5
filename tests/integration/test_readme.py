"""The commands of the README run as they are written."""

import re
import shlex
from pathlib import Path

import pytest

from dirl.cli.main import main

ROOT = Path(__file__).parents[2]
SHORT = {"sft": ["--trainer.max_steps=2"], "rl": ["--trainer.max_epochs=1", "--data.prompts_per_rollout=2"]}


def commands(heading: str) -> list[list[str]]:
    """Those of the first block of code behind a heading, as words."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {heading}")[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("lightning run")]


def test_a_laptop_trains_on_files_of_its_user_with_a_reward_of_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    sft, rl = commands("Teach it something of yours")
    main([*sft[2:], *SHORT["sft"]])
    main([*rl[2:], *SHORT["rl"]])
    assert (tmp_path / "outputs" / "laptop-rl" / "model" / "model.safetensors").exists()
    rows = (tmp_path / "outputs/laptop-rl/logs/version_0/metrics.csv").read_text().splitlines()
    assert "rollout/reward/backwards" in rows[0]


def test_the_data_of_the_example_are_what_its_script_makes(tmp_path: Path) -> None:
    script = tmp_path / "make_data.py"
    script.write_text((ROOT / "examples" / "backwards" / "make_data.py").read_text())
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__", "__file__": str(script)})
    for name in ("conversations", "questions", "held_out"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (ROOT / f"examples/backwards/{name}.jsonl").read_bytes()
