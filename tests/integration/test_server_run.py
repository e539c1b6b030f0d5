"""An RL run whose engine is a server: the run with the engine inside, to the bit, also across the server's end."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.toy import write_rl
from tests.unit.rollout.serving import ThreadServer, served

from dirl.cli.main import main
from dirl.models import NewModel
from dirl.rollout import TorchEngine
from dirl.rollout.engine import EnginesLostError
from dirl.types import DecodingParams, GenerationRequest, Trajectory

CONFIGS = Path(__file__).parents[2] / "configs"
SOURCE = NewModel(block_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8)
"""That of configs/debug/rl.yaml."""


class Mortal(TorchEngine):
    """One sequence at a time: bitwise the same in any company. Breaks in its `ends_in`-th rollout."""

    def __init__(self, ends_in: int | None = None) -> None:
        super().__init__(max_batch_size=1)
        self.rollouts, self.ends_in = 0, ends_in
        description = SOURCE.describe()
        self.setup(description.config, description.tokenizer, description.spec, "cpu")

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        self.rollouts += 1
        for count, trajectory in enumerate(super().generate(requests, decoding)):
            if self.rollouts == self.ends_in and count == 3:
                raise RuntimeError("the device is gone")
            yield trajectory


def fit(root: Path, data: Path, engine: str, *args: str) -> list[dict[str, str]]:
    """Run configs/debug/rl.yaml with this engine; the rows of its metrics."""
    overlay = root.with_suffix(".yaml")
    overlay.write_text(
        f"""
engine: {engine}
rollout: {{rewards: [{{class_path: tests.integration.toy.Letters}}]}}
""",
        encoding="utf-8",
    )
    configs = ["--config", str(CONFIGS / "debug" / "rl.yaml"), "--config", str(overlay)]
    options = [f"--data.init_args.train={data}", f"--trainer.default_root_dir={root}"]
    main(["fit", *configs, *options, "--trainer.enable_progress_bar=false", *args])
    newest = max(root.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    with newest.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_equal_weights(first: Path, second: Path) -> None:
    one, two = (load_file(root / "model" / "model.safetensors") for root in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_with_servers_is_the_run_with_the_engine_inside_also_after_all_were_lost(tmp_path: Path) -> None:
    data, inside, outside = write_rl(tmp_path / "rl.jsonl"), tmp_path / "inside", tmp_path / "outside"
    wanted = fit(inside, data, "{class_path: dirl.rollout.TorchEngine, init_args: {max_batch_size: 1}}")
    first = served(Mortal(ends_in=2), spec=SOURCE.describe().spec)
    engine = f"{{class_path: dirl.rollout.ServerEngine, init_args: {{urls: ['{first.url}'], start_timeout_s: 5}}}}"
    with pytest.raises(EnginesLostError, match=r"the device is gone.*\n.*--ckpt_path .*engines_lost.ckpt"):
        fit(outside, data, engine)
    first.stop()
    second: ThreadServer = served(Mortal(), spec=SOURCE.describe().spec, port=first.port)
    resumed = fit(outside, data, engine, f"--ckpt_path={outside / 'engines_lost.ckpt'}")
    second.stop()
    assert_equal_weights(inside, outside)
    last = [[row["train/loss"] for row in rows if row["train/loss"]][-1] for rows in (wanted, resumed)]
    assert last[0] == last[1]
