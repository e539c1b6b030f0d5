"""Every benchmark runs at toy size, prints its table and writes JSON with what it ran on."""

import dataclasses
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from benchmarks import (
    engine,
    fill,
    gpu,
    gpu_training,
    layouts,
    loading,
    peer,
    push,
    record,
    rollout_gpu,
    scaling,
    startup,
)
from benchmarks.device_clock import Deadline, Timing
from benchmarks.fresh_process import in_fresh_process, measured
from benchmarks.shapes import TOYS, model_spec

MAINS = {
    "layouts": layouts.main,
    "engine": engine.main,
    "peer": peer.main,
    "scaling": scaling.main,
    "fill": fill.main,
    "startup": startup.main,
    "loading": loading.main,
}
NAMES = [pytest.param(name, marks=[pytest.mark.thorough] if name == "loading" else []) for name in MAINS]


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run_writes_its_results(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    MAINS[name](["--dry-run"])
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["rows"]
    assert written["environment"]["versions"]["torch"] == version("torch")
    assert {"commit", "cpu", "cores"} <= set(written["environment"])
    assert "━" in capsys.readouterr().out


@pytest.mark.parametrize("part", gpu.PARTS)
def test_the_gpu_part_has_a_dry_run(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    gpu.main([part, "--dry-run"])
    (written,) = tmp_path.iterdir()
    assert written.name.startswith(f"gpu_{part}")
    assert json.loads(written.read_text())["rows"]
    assert "━" in capsys.readouterr().out


@pytest.mark.parametrize("part", rollout_gpu.PARTS)
def test_the_rollout_part_has_a_dry_run(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    rollout_gpu.main([part, "--dry-run"])
    rows = json.loads((tmp_path / f"gpu_rollout_{part}.json").read_text())["rows"]
    assert {row["engine"] for row in rows} == {"TorchEngine"}
    assert "━" in capsys.readouterr().out


def test_options_change_a_part_and_leave_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    gpu.main(["train", "--dry-run", "--kinds", "sft", "--tokens", "128", "--recompute", "full", "selective"])
    rows = json.loads((tmp_path / "gpu_train_tiny.json").read_text())["rows"]
    assert [(row["model"], row["kind"], row["asked"], row["recompute"]) for row in rows] == [
        ("tiny", "sft", 128, "full")
    ]


def test_a_part_out_of_time_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    gpu.main(["attention", "--dry-run", "--time-limit", "-1"])
    assert "Left out for lack of time: 96 tokens, 192 tokens." in capsys.readouterr().out


def test_without_a_gpu_only_a_dry_run_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main(["rates"])


def test_what_does_not_fit_is_tried_with_more_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(call: Callable[[], object], device: str, repeats: int = 3) -> Timing:
        if modes[-1] == "none":
            raise torch.OutOfMemoryError
        return Timing(1.0, 2.0, 3)

    modes: list[str] = []
    build = gpu_training.build
    monkeypatch.setattr(gpu_training, "timed", timed)
    monkeypatch.setattr(
        gpu_training, "build", lambda shape, mode, *rest: modes.append(mode) or build(shape, mode, *rest)
    )
    part = gpu_training.TrainingPart(("tiny",), ("policy",), (96,), compiled=False)
    monkeypatch.setattr(gpu_training, "matrix_rate", lambda *_: 1e12)
    rows = gpu_training.run(part, "cpu", Deadline(60))
    assert modes == ["none", "selective"]
    assert [row["recompute"] for row in rows] == ["selective"]
    rows = gpu_training.run(dataclasses.replace(part, modes=("none",)), "cpu", Deadline(60))
    assert rows == [{"model": "tiny", "kind": "policy", "asked": 96}]


@pytest.mark.parametrize("kind", ["sft", "policy"])
def test_a_training_row_fills_the_tokens_asked_for(kind: str) -> None:
    spec = model_spec(TOYS["small"], gpu_training.BLOCK_SIZE)
    for tokens in (2048, 8192):
        assert 0.9 * tokens < len(gpu_training.make_row(kind, spec, tokens)) <= tokens


def test_layouts_of_one_load_score_the_same_tokens_and_ours_has_the_fewest() -> None:
    rows = layouts.compare(layouts.DRY_RUN, layouts.Limits(8, 24, 64), "tiny", threads=1, seconds=0.0)
    assert len(rows) == len(layouts.CANDIDATES)
    assert len({row["scored_tokens"] for row in rows}) == 1
    assert min(rows, key=lambda row: row["tokens"])["candidate"] == "one forward (ours)"
    per_step, ours = rows[-2:]
    assert per_step["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert per_step["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-4)


def test_a_sample_of_forwards_is_spread_over_all() -> None:
    assert layouts.spread(list(range(10)), 2) == [2, 7]
    assert layouts.spread(list(range(3)), 5) == [0, 1, 2]
    assert layouts.spread(list(range(3)), None) == [0, 1, 2]
    assert layouts.spread(list(range(3)), 0) == []


def test_peak_memory_is_that_of_the_call() -> None:
    cost = in_fresh_process(_fill_memory, 64)
    assert cost["peak_bytes"] == pytest.approx(64e6, rel=0.25)


def _fill_memory(megabytes: int) -> dict[str, float]:
    # The first use of a kernel reads pages of torch's libraries, 10 to 32 MB as the system finds them in its cache.
    torch.ones(250_000).sum()
    _, cost = measured(lambda: torch.ones(megabytes * 250_000).sum())
    return {"peak_bytes": cost.peak_bytes}


def test_a_process_that_dies_is_an_error_that_says_so() -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        in_fresh_process(_die)


def _die() -> dict[str, float]:
    raise SystemExit(3)


@pytest.mark.parametrize("value, text", [(1234567, "1,234,567"), (0.123456, "0.123"), (1234.5, "1,234"), (None, "-")])
def test_numbers_are_printed_for_reading(value: object, text: str) -> None:
    assert record._cell(value) == text


def test_outside_a_checkout_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record._commit() == "unknown"


def test_a_push_to_an_engine_in_bf16_is_half_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    push.main(["--model", "tiny"])
    rows = json.loads((tmp_path / "push.json").read_text())["rows"]
    assert [row["of the trainer's"] for row in rows] == [1, 0.5, 1, 0.5]
