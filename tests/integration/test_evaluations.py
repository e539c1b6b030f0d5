"""Evaluations as users run them: several models and tasks, sweeps, kills, tables; in training and alone."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.toy import metrics

from dirl.cli.main import main
from dirl.evaluation.results import read_results
from dirl.evaluation.run import TIMED
from dirl.models import NewModel, export_model
from dirl.models.families.weights import named_tensors, weight_shapes

ROOT = Path(__file__).parents[2]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
DECODING = "--decoding={drawn: {max_response_tokens: 8}, greedy: {temperature: 0, max_response_tokens: 8}}"
NEW = ["--source=dirl.models.NewModel"]
LETTERS = "--rewards=[tests.integration.toy.Letters]"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two new models that differ in their seed."""
    folders = {}
    for seed, name in enumerate(("before", "after")):
        source = NewModel(seed=seed, initializer_range=0.3, **SMALL)
        description = source.describe()
        backbone = source.build(description.config)
        shapes = weight_shapes(description.family, backbone)
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        export_model(folders[name], description, named_tensors(backbone), shapes)
    return folders


def options(models: dict[str, Path], **tasks: int) -> list[str]:
    named = {name: f"{{task: dirl.tasks.Arithmetic, limit: {limit}}}" for name, limit in tasks.items()}
    return [
        f"--models={{before: {models['before']}, after: {models['after']}}}",
        f"--tasks={{{', '.join(f'{name}: {task}' for name, task in named.items())}}}",
    ]


def steady(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics without those that no two runs have in common."""
    return {name: value for name, value in values.items() if not f"/{name}".endswith(TIMED)}


def problems(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in rows]


def test_models_and_tasks_before_and_after_in_one_table(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    main(["evaluate", *options(models, sums=4, more=3), DECODING, "--samples=4", f"--output={output}"])
    said = capsys.readouterr().out
    for text in ("before", "after", "sums (avg@4)", "more (avg@1)", "mean", "the same problems, paired"):
        assert text in said
    assert "after/sums/greedy: 100% of the responses were cut off by max_response_tokens=8: raise it" in said
    found = read_results(output)
    assert [(r.model, r.task, r.decoding) for r in found] == [
        (model, task, decoding)
        for model in ("before", "after")
        for task in ("sums", "more")
        for decoding in ("drawn", "greedy")
    ]
    first = found[0]
    assert {"accuracy/low", "pass_at_4", "maj_at_4", "denoising_steps", "tokens_per_second"} <= first.metrics.keys()
    assert first.starts[0]["dtype"] == "float32" and first.starts[0]["engine"] == "TorchEngine"
    assert first.settings["versions"]["torch"] and first.settings["decoding"]["threshold"] == 0.9
    assert [len(p.responses) for p in first.read_problems()] == [4] * 4
    assert (output / "after" / "more" / "greedy.jsonl").is_file(), "trajectories"

    for name in ("table.md", "table.html", "table.csv"):
        main(["compare", str(output), f"--output={tmp_path / name}"])
    text = (tmp_path / "table.md").read_text()
    assert (
        text.startswith("| model | decoding | sums (avg@1-4) accuracy |")
        and "| after over before | sums, drawn |" in text
    )
    assert "</html>" in (tmp_path / "table.html").read_text()
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    value = next(
        r for r in rows if (r["model"], r["task"], r["decoding"], r["metric"]) == ("before", "sums", "drawn", "reward")
    )
    assert float(value["value"]) == first.metrics["reward"]

    capsys.readouterr()
    main(["evaluate", *options(models, sums=4, more=3), DECODING, "--samples=4", f"--output={output}"])
    again = read_results(output)
    assert [steady(r.metrics) for r in again] == [steady(r.metrics) for r in found], "all of it was there"
    assert [r.starts for r in again] == [r.starts for r in found], "nothing was started"
    with pytest.raises(ValueError, match=r"before/sums/drawn: samples was 4, is 2"):
        main(["evaluate", *options(models, sums=4, more=3), DECODING, "--samples=2", f"--output={output}"])


def test_results_of_other_problems_under_one_name_are_not_compared(models: dict[str, Path], tmp_path: Path) -> None:
    for limit in (2, 3):
        main(["evaluate", *options(models, sums=limit), DECODING, f"--output={tmp_path / str(limit)}"])
    with pytest.raises(ValueError, match=r"task 'sums' is not the same .* \(2 and 3 problems\)"):
        main(["compare", str(tmp_path / "2"), str(tmp_path / "3")])
    with pytest.raises(ValueError, match=r"tasks: no run has 'gsm8k'; they have sums"):
        main(["compare", str(tmp_path / "2"), "--tasks=[gsm8k]"])


def test_a_sweep_draws_accuracy_against_tokens_per_step(models: dict[str, Path], tmp_path: Path) -> None:
    decoding, sweep = "--decoding={drawn: {max_response_tokens: 8}}", "--sweep.thresholds=[0.05, 0.3, 0.95]"
    single = [
        "--source=dirl.models.PretrainedModel",
        f"--source.path={models['before']}",
        "--task=dirl.tasks.Arithmetic",
    ]
    output = tmp_path / "out"
    main(["evaluate", *single, "--data.limit=4", decoding, sweep, "--sweep.block_sizes=[2, 4]", f"--output={output}"])
    found = json.loads((output / "sweep.json").read_text())
    assert [len(one["points"]) for one in found["curves"]] == [3, 3]
    assert [r.block_size for r in read_results(output)] == [2] * 3 + [4] * 3
    speeds = [point["tokens_per_step"] for point in found["curves"][1]["points"]]
    assert speeds == sorted(speeds) and len((output / "sweep.csv").read_text().splitlines()) == 7
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bits(models: dict[str, Path], tmp_path: Path) -> None:
    """SIGKILL to the real command, twice, at moments that the clock decides."""
    given = [
        *("evaluate", "--source=dirl.models.PretrainedModel", f"--source.path={models['before']}"),
        *("--task=dirl.tasks.Arithmetic", "--data.limit=120", LETTERS, "--samples=2", "--portion=6"),
        *("--correct=letters", "--decoding={drawn: {max_response_tokens: 24}}"),
    ]
    main([*given, f"--output={tmp_path / 'whole'}"])
    output, kills = tmp_path / "killed", 0
    command = [sys.executable, "-m", "dirl.cli", *given, f"--output={output}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for least in (1, 40):
        run = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        file = output / "problems" / "drawn.jsonl"
        while run.poll() is None and time.monotonic() < until:
            if file.is_file() and len(file.read_bytes().splitlines()) >= least:
                break
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))
        kills += run.poll() is None
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert kills == 2, "it was too fast to be killed"
    assert not (output / "results.json").exists()
    main([*given, f"--output={output}"])
    whole, gone_on = read_results(tmp_path / "whole")[0], read_results(output)[0]
    assert len(gone_on.starts) == 3
    assert steady(gone_on.metrics) == steady(whole.metrics)
    assert problems(output / whole.file) == problems(tmp_path / "whole" / whole.file)
    name = "drawn.jsonl"
    assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), "every log-prob too"


TASKS = """
decoding: {drawn: {max_response_tokens: 8}, greedy: {temperature: 0, max_response_tokens: 8}}
tasks:
  sums: {task: dirl.tasks.Arithmetic, limit: 6, samples: 2}
  more: {class_path: dirl.tasks.Arithmetic, init_args: {seed: 3, val_prompts: 4}}
"""


def test_a_callback_with_tasks_of_its_own_has_the_numbers_of_the_command(tmp_path: Path) -> None:
    """The weights that the callback saw at the end are those of the model that is exported then."""
    root, output, own = tmp_path / "run", tmp_path / "alone", tmp_path / "own.yaml"
    own.write_text(f"evaluate:\n  every_n_epochs: 1{textwrap.indent(TASKS, '  ')}")
    configs = [ROOT / "configs/debug/rl.yaml", ROOT / "configs/task/arithmetic.yaml", own]
    main(["fit", *(f"--config={c}" for c in configs), f"--trainer.default_root_dir={root}", "--trainer.max_epochs=1"])
    history = json.loads(next(root.glob("logs/version_0/evaluation.json")).read_text())
    assert len(metrics(root, "eval/more/greedy/accuracy")) >= 1
    own.write_text(TASKS)
    source = ["--source=dirl.models.PretrainedModel", f"--source.path={root / 'model'}"]
    main(["evaluate", *source, f"--config={own}", f"--output={output}"])
    found = {
        f"eval/{result.task}/{result.decoding}/{name}": value
        for result in read_results(output)
        for name, value in steady(result.metrics).items()
    }
    logged = {name: value for name, value in history[-1].items() if name != "step" and not name.endswith(TIMED)}
    assert found and found == logged
    step = int(history[-1]["step"])
    kept = root / "logs/version_0/evaluations" / f"step-{step}"
    for alone, inside in zip(read_results(output), read_results(kept), strict=True):
        assert (alone.task, alone.decoding, inside.model) == (inside.task, inside.decoding, f"step {step}")
        assert problems(output / alone.file) == problems(kept / inside.file)
    main(["compare", str(kept.with_name("step-0")), str(kept), f"--output={tmp_path / 'table.md'}"])
    assert f"step {step} over step 0" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "source and models: neither is given"),
        (["--models={a: x}", "--source=dirl.models.NewModel"], "source and models: both are given"),
        (["--models={a/b: x}"], "models: 'a/b' is to name files and columns"),
        ([*NEW, "--tasks={a: dirl.tasks.Sudoku}", "--task=dirl.tasks.Sudoku"], "tasks and task: both"),
        ([*NEW, "--tasks={a: dirl.tasks.Sudoku}"], r"tasks\.a: no decoding is given"),
        ([*NEW, "--tasks={a: dirl.tasks.Files}", DECODING], r"tasks\.a\.rewards: no rewards are given"),
        ([*NEW, "--tasks={a: {task: dirl.tasks.Sudoku, samples: 0}}"], "samples=0: use at least 1"),
    ],
)  # fmt: skip
def test_what_an_evaluation_of_several_lacks_is_said(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["evaluate", *given])
