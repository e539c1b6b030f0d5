"""The table of docs/models.md says what the families and the plan say."""

import re
from pathlib import Path

import pytest

from dirl.cli.plan import read_plan
from dirl.planning.named_shapes import SHAPES, named_or_file

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
ROW = re.compile(r"\| ([\w.-]+) \(`(\w+)`\) \|(.*)\|\n")
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TABLE = {name: (config, [cell.strip() for cell in rest.split("|")]) for name, config, rest in ROW.findall(PAGE)}


def planned(recipe: str, model: str) -> float:
    args = ["--config", CONFIGS / f"{recipe}.yaml", "--config", CONFIGS / "strategy" / "fsdp.yaml"]
    if recipe == "rl":
        args += ["--config", CONFIGS / "engine" / "torch.yaml", "--prompt_tokens=150", "--response_tokens=1000"]
    return read_plan([*map(str, args), "--devices=8", "--memory=80GB", f"--model_config={model}"]).peak[1] / 2**30


def test_every_model_that_a_plan_knows_has_a_row_and_a_config() -> None:
    assert TABLE.keys() == SHAPES.keys()
    files = {path.stem for path in (CONFIGS / "model").glob("*.yaml")}
    assert {config for config, _ in TABLE.values()} | {"new_tiny"} == files


@pytest.mark.parametrize("model", TABLE)
def test_its_row_says_block_size_parameters_and_memory(model: str) -> None:
    config, (_, block, mask, _, parameters, sft, rl) = TABLE[model]
    assert named_or_file(model) == (SHAPES[model], int(block))
    assert parameters == f"{SHAPES[model].parameters / 1e9:.2f} B"
    assert float(sft) == pytest.approx(planned("sft", model), rel=0.02)
    assert float(rl) == pytest.approx(planned("rl", model), rel=0.02)
    text = (CONFIGS / "model" / f"{config}.yaml").read_text(encoding="utf-8")
    named = re.search(r"mask_token: (\d+)", text)
    assert named is None or named[1] == mask
    size = re.search(r"block_size: (\d+)", text)
    assert size is None or size[1] == block
