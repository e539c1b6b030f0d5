"""An overlay says all that any other config says of the same class: nothing of the config below is left in it."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.cli.test_cli_text import Parsed

from dirl.cli.fit import DirlCLI

ROOT = Path(__file__).parents[3] / "configs"
PLACES = {
    "model": "model.init_args.source",
    "adapt": "model.init_args.source",
    "engine": "engine",
    "objective": "objective",
    "task": "task",
    "strategy": "trainer.strategy",
    "lora": "model.init_args.lora",
}
"""Folder of overlays and the key that is theirs."""
STAYS = {"importance_cap"}
"""What an objective is told because of the engine, which another overlay chooses."""


@cache
def stated(path: Path, place: str) -> tuple[str, set[str]] | None:
    """The class that a config names at a place, and the options that it gives it."""
    found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return None
    return (found["class_path"], set(found.get("init_args") or {})) if "class_path" in found else ("", set(found))


EVERY = sorted(ROOT.rglob("*.yaml"))
OVERLAYS = [path for path in EVERY if path.parent.name in PLACES and stated(path, PLACES[path.parent.name])]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_overlay_states_what_other_configs_state_of_its_class(overlay: Path) -> None:
    place = PLACES[overlay.parent.name]
    cls, own = stated(overlay, place)
    others = [other[1] for path in EVERY if (other := stated(path, place)) and other[0] == cls]
    assert set().union(*others) - own <= STAYS


def parsed(*words: str) -> DirlCLI:
    return Parsed(["fit", *("--config" if word == "+" else word for word in words)])


def test_another_class_starts_with_its_own_defaults() -> None:
    """In a further config and on the command line; what is given after it, and options of the same class, are kept."""
    rl, spg, torch = (str(ROOT / name) for name in ("rl.yaml", "objective/spg.yaml", "engine/torch.yaml"))
    config = parsed("+", rl, "--objective=dirl.objectives.Coupled", "--objective.kl_coef=0.5").config["fit"]
    given = config["objective"]["init_args"]
    assert (given["clip_low"], given["clip_high"], given["kl_coef"], "importance_cap" in given) == (
        0.5,
        0.5,
        0.5,
        False,
    )
    config = parsed("+", rl, "+", spg, "--objective=dirl.objectives.TraceRL").config["fit"]
    assert config["objective"]["init_args"]["clip_high"] == 0.2
    config = parsed("+", rl, "--engine.max_batch_size=32", "+", torch).config["fit"]
    assert config["engine"]["init_args"]["max_batch_size"] == 64
    given = parsed("+", rl, "--objective.kl_coef=0.5").config["fit"]["objective"]["init_args"]
    assert (given["kl_coef"], given["importance_cap"]) == (0.5, 2.0)


def test_a_suite_named_on_top_of_another_has_files_of_its_own() -> None:
    rl, gsm8k = (str(ROOT / name) for name in ("rl.yaml", "task/gsm8k.yaml"))
    given = parsed("+", rl, "+", gsm8k, "--task=dirl.tasks.MATH500").config["fit"]["task"]["init_args"]
    assert (given["train"], given["val"]) == (None, "HuggingFaceH4/MATH-500")


def test_a_users_own_form_of_a_datamodule_keeps_what_the_recipe_says_of_it() -> None:
    rl = str(ROOT / "rl.yaml")
    given = parsed("+", rl, "--data=tests.integration.engines.OwnRLData").config["fit"]["data"]["init_args"]
    assert (given["prompts_per_rollout"], given["question_column"]) == (32, "problem")
