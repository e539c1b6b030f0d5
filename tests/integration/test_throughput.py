"""The Throughput callback in real runs: its counts against the dense mask, on one process and on two."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from dirl.callbacks import Throughput
from dirl.callbacks.throughput import _peak_of, peak_memory, phase_shares
from tests.integration.one_run import run
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

from dirl.attention import dense_mask
from dirl.batches import IGNORE, PackedBatch
from dirl.cli.main import main
from dirl.modules import RLModule
from dirl.planning.peaks import peak_tflops

CONFIGS = Path(__file__).parents[2] / "configs"
PEAK = 0.01
"""TFLOP/s of a device that is none."""


class Count(L.Callback):
    """Writes what each rank's steps hold, counted the slow way."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.steps: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch, batch_idx: int) -> None:
        rows = batch.micro_batches
        scored = sum(int((row.target_ids != IGNORE).sum()) for row in rows)
        layer = pl_module.model.backbone.model.layers[0]
        products = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
        config, layers = pl_module.description.config, pl_module.description.config.num_hidden_layers
        tokens = sum(len(row) for row in rows)
        pairs = sum(int(dense_mask(row.layout).sum()) for row in rows)
        met = scored + sum(self.rejected(row, pl_module) for row in rows)
        forward = 2 * products * layers * tokens + 2 * met * config.hidden_size * config.vocab_size
        forward += 4 * pairs * layers * config.num_attention_heads * config.head_dim
        self.steps.append(
            {"tokens": tokens, "scored": scored, "responses": batch.loss_divisor, "flops": 3 * float(forward)}
        )

    def rejected(self, row: PackedBatch, module: L.LightningModule) -> int:
        """Masked positions that are not scored: `likelihood: trajectory` takes them to the head as well."""
        if not isinstance(module, RLModule) or module.objective.likelihood == "tokens":
            return 0
        masked = (row.input_ids == module.spec.mask_token_id) & (row.view_ids > 0)
        return int((masked & (row.target_ids == IGNORE)).sum())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Path(self.folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(self.steps))


def callbacks(path: Path, peak: float | None = PEAK) -> Path:
    """A config on top with a peak, and the slow count beside the callback."""
    path.write_text(
        f"throughput: {{peak_tflops: {peak or 'null'}}}\n"
        "trainer:\n  callbacks+:\n"
        "    - class_path: tests.integration.test_throughput.Count\n"
        f"      init_args: {{folder: {path.parent}}}\n",
        encoding="utf-8",
    )
    return path


def fit(root: Path, *args: object) -> Path:
    main(["fit", *map(str, args), f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"])
    return root


def counted(folder: Path) -> dict[str, list[float]]:
    """Sums over the ranks, step by step."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    return {key: [sum(step[key] for step in steps) for steps in zip(*ranks, strict=True)] for key in ranks[0][0]}


def assert_rates(root: Path, counts: dict[str, list[float]], devices: int, responses: str) -> None:
    seconds = metrics(root, "throughput/step_s")
    assert len(seconds) == len(counts["tokens"]) > 0
    assert min(seconds) > 0
    wanted = {
        "packed_tokens_per_s": counts["tokens"],
        "response_tokens_per_s": counts[responses],
        "tflops_per_device": [x / devices / 1e12 for x in counts["flops"]],
        "mfu": [x / devices / 1e12 / PEAK for x in counts["flops"]],
    }
    for name, amounts in wanted.items():
        rates = metrics(root, f"throughput/{name}")
        assert [rate * s for rate, s in zip(rates, seconds, strict=True)] == pytest.approx(amounts, rel=1e-4), name


@pytest.mark.parametrize("likelihood", ["tokens", "trajectory"])
def test_rates_of_rl_are_the_tokens_and_flops_of_its_steps(tmp_path: Path, likelihood: str) -> None:
    data, overlay = write_rl(tmp_path / "rl.jsonl"), rl_overlay(tmp_path / "overlay.yaml")
    configs = [CONFIGS / "debug" / "rl.yaml", overlay, callbacks(tmp_path / "throughput.yaml")]
    args = [x for config in configs for x in ("--config", config)]
    options = ["--data.init_args.token_budget=200", f"--objective.init_args.likelihood={likelihood}"]
    root = fit(tmp_path / "run", *args, f"--data.init_args.train={data}", *options)
    assert_rates(root, counted(tmp_path), 1, responses="scored")
    shares = {
        name: metrics(root, f"share/{name}") for name in ("generate", "reward", "push", "score", "train_step", "other")
    }
    assert {len(values) for values in shares.values()} == {2}
    for epoch in zip(*shares.values(), strict=True):
        assert all(share >= 0 for share in epoch)
        assert sum(epoch) == pytest.approx(1, abs=0.02)
    assert min(shares["generate"]) > 0
    assert len(metrics(root, "throughput/epoch_response_tokens_per_s")) == 2
    assert min(metrics(root, "memory/process_peak_gib")) > 0.1


def test_rates_of_sft_count_response_tokens_and_a_cpu_has_no_utilisation(tmp_path: Path) -> None:
    data = write_sft(tmp_path / "sft.jsonl")
    overlay = callbacks(tmp_path / "throughput.yaml", peak=None)
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", overlay, f"--data.init_args.train={data}"]
    root = fit(tmp_path / "run", *args)
    counts, seconds = counted(tmp_path), metrics(root, "throughput/step_s")
    rates = metrics(root, "throughput/response_tokens_per_s")
    assert [r * s for r, s in zip(rates, seconds, strict=True)] == pytest.approx(counts["responses"], rel=1e-4)
    assert not metrics(root, "throughput/mfu")


def test_a_gpu_of_unknown_name_is_told_how_to_get_its_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Abacus 3000")
    with pytest.warns(UserWarning, match=r"'Abacus 3000'.*set throughput\.peak_tflops"):
        assert _peak_of(torch.device("cuda")) is None


def test_two_processes_sum_their_tokens(tmp_path: Path) -> None:
    data, overlay = write_sft(tmp_path / "sft.jsonl"), callbacks(tmp_path / "throughput.yaml")
    args = ["--config", CONFIGS / "debug" / "sft.yaml", "--config", overlay, f"--data.init_args.train={data}"]
    root = run(tmp_path / "run", "ddp", *args, "--data.init_args.token_budget=180")
    assert len(list(tmp_path.glob("rank*.json"))) == 2
    assert_rates(root, counted(tmp_path), 2, responses="responses")


def test_of_groups_made_while_the_trainer_works_only_the_wait_counts() -> None:
    logged = {"time/generate_s": 6.0, "time/reward_s": 2.0, "time/push_s": 1.0, "time/score_s": 1.0}
    assert phase_shares(logged, step_s=5.0, wall=20.0) == {
        **{"generate": 0.3, "reward": 0.1, "push": 0.05, "score": 0.05, "train_step": 0.25},
        "other": pytest.approx(0.25),
    }
    waited = phase_shares(logged | {"time/rollout_s": 4.0}, step_s=5.0, wall=20.0)
    assert (waited["generate"], waited["reward"]) == (0.15, 0.05)
    assert waited["other"] == pytest.approx(0.45)


def test_sft_has_no_phases_of_a_rollout() -> None:
    assert phase_shares({}, step_s=3.0, wall=4.0) == {"train_step": 0.75, "other": 0.25}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA B200", 2250.0),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_the_name_of_the_device(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_a_peak_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"throughput\.peak_tflops=0"):
        Throughput(peak_tflops=0)


def test_the_peak_memory_of_a_process_is_at_least_what_it_holds() -> None:
    held = torch.ones(2**26)  # 256 MiB
    assert peak_memory(torch.device("cpu"))["process_peak_gib"] > held.nbytes / 2**30
