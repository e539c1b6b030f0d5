"""Samples of older weights: refused where the loss cannot learn from them, and weighed right where it can."""

from pathlib import Path

import pytest
import torch
from tests.integration.identity import checkpoint
from tests.integration.test_overlap import CAP, with_engine
from tests.integration.test_runs import CONFIGS, fit, rl_args
from tests.integration.toy import metrics

from dirl.cli.fit import DirlCLI
from dirl.objectives import DiPO
from dirl.rl.staleness import check_stale
from dirl.types import DecodingParams

WHOLE = "--objective.init_args.likelihood=trajectory"


def replayed(tmp_path: Path) -> list[object]:
    """Options that train from the trajectories of a run of two rollouts, made here."""
    saved = tmp_path / "stored"
    args = rl_args(tmp_path, rollout=f"        save_trajectories: {saved}")
    fit(tmp_path / "sampled", *args)
    everything = tmp_path / "all.jsonl"
    everything.write_text("".join(path.read_text() for path in sorted(saved.iterdir())))
    return [*rl_args(tmp_path), *with_engine(tmp_path, "dirl.rollout.ReplayEngine", path=str(everything))]


@pytest.mark.parametrize("way", ["overlap", "oversample", "replay"])
def test_what_brings_stale_samples_is_refused_without_the_importance_weight(tmp_path: Path, way: str) -> None:
    options = {"overlap": "        overlap: true", "oversample": "        oversample: 1.5"}
    args = replayed(tmp_path) if way == "replay" else rl_args(tmp_path, rollout=options[way])
    named = "engine" if way == "replay" else rf"rollout\.{way}"
    with pytest.raises(ValueError, match=rf"^{named}=.*older policy: set objective\.init_args\.importance_cap"):
        fit(tmp_path / "run", *args)
    with pytest.raises(ValueError, match=r"likelihood=trajectory asks .* use likelihood=tokens"):
        fit(tmp_path / "run", *args, CAP, WHOLE)
    root = fit(tmp_path / "run", *args, CAP, WHOLE, "--model.init_args.decoding.confidence=max")
    assert len(metrics(root, "train/loss")) == 4


def test_surplus_in_a_checkpoint_is_refused_by_a_run_that_makes_none(tmp_path: Path) -> None:
    args = rl_args(tmp_path, rollout="        oversample: 1.5")
    root = fit(tmp_path / "run", *args, CAP, "--trainer.max_epochs=1")
    again = rl_args(tmp_path)
    with pytest.raises(ValueError, match="this rollout trains on samples of an older policy"):
        fit(tmp_path / "resumed", *again, f"--ckpt_path={checkpoint(root, 2)}")


def test_stale_groups_are_weighed_by_old_over_behaviour_from_before_the_first_update(tmp_path: Path) -> None:
    """Two steps and two passes: both see the log-probs of the weights that began the epoch."""
    args = [*replayed(tmp_path), "--data.init_args.passes=2", "--model.init_args.optimizer.lr=1e-2", CAP]
    root = fit(tmp_path / "run", *args)
    assert metrics(root, "rollout/stale_groups") == [0, 4]
    held = [torch.load(checkpoint(root, s), weights_only=True)["RLDataModule"] for s in (5, 7)]  # in the second epoch
    first, last = ([b for s in d["ranks"][0]["buffer"]["steps"] for b in s["micro_batches"]] for d in held)
    for one, other in zip(first, last, strict=True):
        old, later = one["columns"]["old_logprobs"], other["columns"]["old_logprobs"]
        assert torch.equal(old, later), "taken once, before the first update"
        apart = (old - one["columns"]["behaviour_logprobs"])[one["target_ids"] >= 0].abs()
        assert apart.max() > 0.01, "the policy has moved since it sampled"
    mismatch = metrics(root, "train/mismatch_abs")
    assert mismatch[0] < 1e-5 < 1e-2 < mismatch[-1]


def test_on_policy_samples_need_no_weight_and_rejections_by_rule_no_factor() -> None:
    check_stale("x", DiPO(importance_cap=2.0), DecodingParams())
    exact = DiPO(importance_cap=2.0, likelihood="trajectory")
    for rule in (DecodingParams(strategy="sequential"), DecodingParams(confidence="max")):
        check_stale("x", exact, rule)
    for drawn in (DecodingParams(), DecodingParams(strategy="low_confidence_static")):
        with pytest.raises(ValueError, match="likelihood=tokens"):
            check_stale("x", exact, drawn)


def test_the_config_for_replay_sets_the_weight_on_top_of_a_recipe_without_one(tmp_path: Path) -> None:
    names = (CONFIGS / "recipe" / "dirl_8b_rl.yaml", CONFIGS / "engine" / "replay.yaml")
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.precision=32-true"]
    configs = [x for name in names for x in ("--config", str(name))]
    cli = DirlCLI([*configs, *here, f"--trainer.default_root_dir={tmp_path}"], run=False)
    assert cli.model.objective.importance_cap == 2.0
    assert cli.model.objective.normalization == "token"
