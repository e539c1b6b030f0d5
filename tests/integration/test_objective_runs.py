"""Whole runs of every overlay of an objective: resumed to the bit, in bf16, and on two processes as on one."""

import math
from pathlib import Path

import pytest
from tests.integration.identity import checkpoint
from tests.integration.several_runs import fit_all
from tests.integration.test_resume import same_weights
from tests.integration.test_runs import CONFIGS, fit
from tests.integration.toy import metrics, rl_overlay, write_rl

EVERY = sorted(path.stem for path in (CONFIGS / "objective").glob("*.yaml"))
ALWAYS = ("lightningrl", "stable_drl")
"""What `make test` runs: totals of a step with sums of trajectories, and what asks for groups; `make thorough`: all."""
OVERLAYS = [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.thorough) for name in EVERY]


def args_of(overlay: str, folder: Path) -> list[object]:
    """A rollout of two steps, gone through twice; responses lie in several rows."""
    folder.mkdir(parents=True, exist_ok=True)
    toy, data = rl_overlay(folder / "overlay.yaml"), write_rl(folder / "rl.jsonl")
    files = (CONFIGS / "debug" / "rl.yaml", toy, CONFIGS / "objective" / f"{overlay}.yaml")
    configs = [word for path in files for word in ("--config", path)]
    options = ["--data.init_args.passes=2", "--data.init_args.token_budget=72", "--trainer.max_epochs=1"]
    return [*configs, f"--data.init_args.train={data}", *options]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each overlay that is asked for a run on one process, and on two with DDP and FSDP2."""
    folder = tmp_path_factory.mktemp("objectives")
    asked = {item.callspec.params["overlay"] for item in request.session.items if item.path == request.path}
    args = {overlay: args_of(overlay, folder / overlay) for overlay in sorted(asked)}
    for overlay, own in args.items():
        fit(folder / f"{overlay}-single", *own)
    strategies = ("ddp", "fsdp")
    two = {f"{overlay}-{strategy}": [strategy, *own] for overlay, own in args.items() for strategy in strategies}
    fit_all(folder, two, processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_two_processes_equal_one(overlay: str, strategy: str, runs: Path) -> None:
    """Each has half of the groups; sums of a sequence, totals of a step and divisors are over both."""
    one, two = runs / f"{overlay}-single", runs / f"{overlay}-{strategy}"
    for name in ("loss", "grad_norm"):
        first, second = metrics(one, f"train/{name}"), metrics(two, f"train/{name}")
        assert len(first) == len(second) == 4
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5), name
    assert max(map(abs, metrics(one, "train/grad_norm"))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_resumed_in_its_first_pass_and_again_ends_with_the_same_weights(overlay: str, runs: Path) -> None:
    whole, args = runs / f"{overlay}-single", args_of(overlay, runs / overlay)
    before = whole
    for step in (1, 3):
        resumed = runs / f"{overlay}-from-{step}"
        fit(resumed, *args, f"--ckpt_path={checkpoint(before, step)}")
        assert metrics(resumed, "train/loss") == metrics(whole, "train/loss")[step - 1 :]  # its step's row again
        assert same_weights(whole, resumed)
        before = resumed


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_in_bf16_has_losses_near_those_in_fp32(overlay: str, runs: Path) -> None:
    """Of the first step, which has the same weights; the samples are those of a forward in fp32 in both."""
    args = args_of(overlay, runs / overlay)
    fit(runs / f"{overlay}-bf16", *args, "--trainer.precision=bf16-mixed")
    exact, rough = (metrics(runs / f"{overlay}-{kind}", "train/grad_norm") for kind in ("single", "bf16"))
    assert len(rough) == 4 and all(map(math.isfinite, rough))
    assert rough[0] == pytest.approx(exact[0], rel=0.1)
