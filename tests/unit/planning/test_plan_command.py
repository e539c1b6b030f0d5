"""The command `plan`: the configs of `fit`, its own options, and what it says of both."""

from pathlib import Path

import pytest

from dirl.cli.main import main
from dirl.cli.plan import read_plan
from dirl.planning.flops import forward_flops
from dirl.planning.plan import Plan
from dirl.planning.settings import parse_bytes

CONFIGS = Path(__file__).parents[3] / "configs"
WHOLE = [CONFIGS / "sft.yaml", CONFIGS / "rl.yaml", *sorted((CONFIGS / "recipe").glob("*.yaml"))]
FSDP_TP = [f"--config={CONFIGS / 'strategy' / 'fsdp_tp.yaml'}", "--memory=1GB"]
GPU_8B = ["--memory=80GB", "--model_config=sdar-8b"]


def planned(config: str, *options: str) -> Plan:
    return read_plan(["--config", str(CONFIGS / config), *options])


@pytest.mark.parametrize("config", WHOLE, ids=lambda path: path.name)
def test_every_recipe_can_be_planned_without_a_gpu_or_the_hub(config: Path) -> None:
    plan = planned(str(config), "--devices=8", *GPU_8B)
    assert plan.settings.shape.parameters / 1e9 == pytest.approx(8.19, abs=0.01)
    assert plan.settings.stage == ("rl" if "rl" in config.stem.split("_") else "sft")
    assert plan.settings.mixed
    assert plan.settings.checkpointing != "none"


def test_the_recipe_for_one_gpu_fits_into_it_trainer_and_engine_taking_turns() -> None:
    plan = planned("recipe/sdar_8b_rl_one_gpu.yaml", "--memory=139.8GiB", "--model_config=sdar-8b")
    assert plan.peak[1] < plan.memory
    moments = plan.moments
    assert moments["rollout"]["engine weights"] > 15 * 2**30
    assert moments["head"]["engine weights"] == 0, "asleep"
    assert moments["rollout"]["optimizer state"] == 0, "on the host"


def test_of_growing_blocks_the_size_that_needs_the_most_is_planned() -> None:
    """Blocks of one score every response token, blocks of four half of them."""
    options = [*GPU_8B, "--devices=8", "--model_config=sdar-8b"]
    own = planned("sft.yaml", *options)
    (ones,) = (planned("sft.yaml", *options, "--data.init_args.block_schedule={sizes: [1, 2, 4], steps: 100}"),)
    assert (own.settings.block_size, ones.settings.block_size) == (4, 1)
    assert ones.setup.scored_share == pytest.approx(0.5 * 7 / 7.5, rel=0.02), "of an eighth of prompt"
    assert ones.peak[1] > own.peak[1] and ones.largest_budget <= own.largest_budget
    assert "goes through the block sizes [1, 2, 4]" in ones.notes[0]
    with pytest.raises(ValueError, match="ends with 2, the model has block_size=4"):
        planned("sft.yaml", *options, "--data.init_args.block_schedule={sizes: [1, 2], steps: 100}")


def test_options_and_several_configs_are_those_of_fit() -> None:
    plan = planned(
        "debug/rl.yaml",
        f"--config={CONFIGS / 'strategy' / 'fsdp.yaml'}",
        *("--memory=16GiB", "--devices=2", "--data.init_args.group_size=8", "--trainer.precision=bf16-mixed"),
    )
    assert (plan.settings.strategy, plan.settings.devices, plan.settings.mixed) == ("fsdp2", 2, True)
    assert plan.settings.data["group_size"] == 8
    assert plan.settings.data["token_budget"] == 512, "as in the first config"
    assert plan.memory == 16 * 2**30


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ([], "single"),
        (["--trainer.strategy=single_device"], "single"),
        (["--trainer.devices=2"], "ddp"),
        (["--trainer.devices=2", "--trainer.strategy=ddp"], "ddp"),
        ([f"--config={CONFIGS / 'strategy' / 'ddp.yaml'}", "--trainer.devices=2"], "ddp"),
    ],
)
def test_devices_and_strategy_are_the_configs(options: list[str], strategy: str) -> None:
    assert planned("debug/rl.yaml", "--memory=1GB", *options).settings.strategy == strategy


def test_devices_of_the_config_count_on_all_hosts() -> None:
    plan = planned("debug/rl.yaml", "--memory=1GB", "--trainer.num_nodes=2", "--trainer.strategy=ddp")
    assert plan.settings.devices == 2


@pytest.mark.parametrize(("value", "mode"), [("none", "none"), ("full", "full"), ("selective", "selective")])
def test_checkpointing_modes_reach_the_plan(value: str, mode: str) -> None:
    plan = planned("debug/sft.yaml", "--memory=1GB", f"--model.init_args.activation_checkpointing={value}")
    assert plan.setup.checkpointing == mode


def test_numbers_of_a_step_follow_from_the_assumed_lengths() -> None:
    lengths = ["--prompt_tokens=8", "--response_tokens=16", "--tokens_per_step=2"]
    plan = planned("debug/rl.yaml", "--memory=1GB", *lengths)
    # 4 groups of 4: a prompt of 2 blocks once, responses of 4 blocks: 3 clean, 2 views of each
    assert plan.clean.tokens == 4 * (8 + 4 * 12)
    assert plan.noised.tokens == 4 * 4 * 32
    assert plan.work.scored == 4 * 4 * 16
    assert plan.flops["forward"] == forward_flops(plan.settings.shape, plan.work)
    assert plan.flops["backward"].total == 2 * plan.flops["forward"].total
    assert plan.flops["old log-probs"] == plan.flops["forward"], "two updates a rollout: the policy moves in between"
    assert "reference log-probs" not in plan.flops
    twice = planned("debug/rl.yaml", "--memory=1GB", *lengths, "--data.init_args.passes=2")
    assert twice.flops["backward"].total == 2 * plan.flops["backward"].total
    assert twice.flops["rollout"] == plan.flops["rollout"]
    kl = planned("debug/rl.yaml", "--memory=1GB", *lengths, "--objective.init_args.kl_coef=0.1")
    assert kl.flops["reference log-probs"] == plan.flops["forward"]


@pytest.mark.parametrize("overlay", sorted((CONFIGS / "objective").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_objective_can_be_planned(overlay: Path) -> None:
    plan = planned("debug/rl.yaml", f"--config={overlay}", "--memory=1GB")
    objective = plan.settings.objective
    assert objective is not None and objective.planned_views(2.0) > 0
    assert ("old log-probs" in plan.flops) == objective.needs_old
    assert ("reference log-probs" in plan.flops) == objective.needs_reference


@pytest.mark.parametrize(
    ("objective", "options", "views"),
    [
        ("dipo", [], 2),
        ("tracerl", ["--tokens_per_step=1"], 4),
        ("tracerl", ["--tokens_per_step=1", "--objective.init_args.shrink=2"], 2),
        ("leftmost", [], 4),  # one token a step, as its decoding has it
        ("coupled", [], 2),
        ("one_step", [], 1),
        ("coupled", ["--objective.init_args.view_fraction=0.5"], 1),
        ("dipo", ["--objective.init_args.trajectory_fraction=0.5"], 1),
    ],
)
def test_the_views_of_a_plan_are_the_objectives(objective: str, options: list[str], views: int) -> None:
    overlay = ["--config", str(CONFIGS / "objective" / f"{objective}.yaml")]
    lengths = ["--prompt_tokens=8", "--response_tokens=16"]
    plan = planned("debug/rl.yaml", *overlay, "--memory=1GB", *lengths, *options)
    assert plan.noised.tokens == 4 * 4 * 16 * views
    assert ("reference log-probs" in plan.flops) == (objective in ("coupled", "one_step"))


def test_a_plan_counts_the_pass_that_sums_over_divided_trajectories() -> None:
    overlay = ["--config", str(CONFIGS / "objective" / "gspo.yaml"), "--prompt_tokens=8", "--response_tokens=16"]

    def sums(budget: int, passes: int) -> bool:
        data = [f"--data.init_args.token_budget={budget}", f"--data.init_args.passes={passes}"]
        return "sums of trajectories" in planned("debug/rl.yaml", *overlay, "--memory=1GB", *data).flops

    one_step = "--data.init_args.steps_per_rollout=1"
    assert sums(40, 2) and not sums(512, 2)
    overlay.append(one_step)
    assert not sums(40, 1)  # the policy has not moved


def test_clean_tokens_over_the_budget_are_planned_as_a_row_of_their_length() -> None:
    plan = planned("debug/rl.yaml", "--memory=1GB", "--response_tokens=2000")
    assert plan.setup.tokens == round(plan.load.longest) > 512
    assert any("over data.token_budget=512" in note for note in plan.notes)


def test_the_command_prints_its_assumptions_every_part_and_the_largest_budget(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["plan", "--config", str(CONFIGS / "debug" / "rl.yaml"), "--memory=1GB", "--reserve=100MB"])
    out = " ".join(capsys.readouterr().out.split())
    for said in (
        "assumed: 1,024 prompt tokens, 16 response tokens, 2 tokens per denoising step",
        "weights",
        "gradients",
        "optimizer state",
        "activations",
        "head: logits",
        "engine weights",
        "KV cache",
        "reserve",
        "largest data.token_budget that fits",
        "recomputed",
        "visible pairs",
    ):
        assert said in out, said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory=80"], "memory='80': use a number and a unit"),
        (["--memory=1GB", "--model_config=nowhere.json"], "model_config='nowhere.json' is no file here"),
        (["--memory=1GB", "--utilisation=2"], "utilisation=2: use a share of the peak above 0 and at most 1"),
        (["--memory=1GB", "--utilisation=much"], "utilisation='much': use a number"),
        (["--memory=1GB", "--utilisation=nowhere.csv"], "utilisation=nowhere.csv: no such file"),
        (["--memory=1GB", "--utilisation=0.4", "--device=abacus"], "device='abacus': use one of A100"),
        (["--memory=1GB", "--rollout_tokens_per_s=0"], "rollout_tokens_per_s=0: use a positive number"),
        ([*FSDP_TP, "--devices=3"], "tensor_parallel_size=2 does not divide the 3 processes"),
        ([*FSDP_TP, "--devices=4", "--model_config=sdar-30b-a3b"], "tensor_parallel_size=2 and model.source"),
        ([*FSDP_TP, "--devices=4", "--trainer.strategy.init_args.shard_size=host"], "are not supported together"),
        (["--memory=1GB", "--trainer.devices=auto"], "trainer.devices='auto' is no number.*--devices"),
        (["--memory=1GB", "--trainer.strategy=deepspeed"], "trainer.strategy='deepspeed': plan knows"),
        (["--memory=1GB", "--trainer.strategy=fsdp"], "trainer.strategy='fsdp': plan knows"),
        (["--memory=1GB", "--trainer.strategy=nowhere"], "trainer.strategy='nowhere': plan knows"),
        (["--memory=1GB", "--trainer.precision=16-mixed"], "trainer.precision='16-mixed': plan knows"),
        (["--memory=1GB", "--tokens_per_step=5"], "tokens_per_step=5: a denoising step commits 1 to block_size=4"),
        (["--memory=1GB", "--response_tokens=0"], "response_tokens=0"),
    ],
)
def test_what_cannot_be_planned_is_an_error_that_says_what_to_do(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned("debug/rl.yaml", *options)


def test_a_model_out_of_reach_is_an_error_that_names_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = ["--model.init_args.source=dirl.models.PretrainedModel", "--model.init_args.source.path=no/such/model"]
    with pytest.raises(ValueError, match=r"'no/such/model' is neither here nor on the hub: .*--model_config.*sdar-8b"):
        planned("debug/sft.yaml", "--memory=1GB", *source)


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80e9), ("79.5GiB", 79.5 * 2**30), ("512 MiB", 2**29), ("1tb", 1e12)]
)
def test_sizes_are_read_with_their_units(text: str, size: float) -> None:
    assert parse_bytes(text, "memory") == size


def test_help_shows_the_options_of_plan_first(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert usage.startswith("usage: dirl plan --config CONFIG") and "[any option of dirl fit]" in usage
    for option in (
        "memory",
        "devices",
        "model_config",
        "prompt_tokens",
        "response_tokens",
        "tokens_per_step",
        "reserve",
    ):
        assert f"--{option}" in usage


def test_a_plan_without_the_memory_of_a_device_says_how_to_give_it() -> None:
    with pytest.raises(ValueError, match="--memory=80GB"):
        planned("debug/rl.yaml")


VALUE = ["--objective=dirl.objectives.TraceRL", "--objective.normalization=sequence", "--objective.value=true"]


def test_a_value_model_is_in_the_plan_with_its_memory_and_its_flops() -> None:
    options = ["--devices=8", *GPU_8B, "--objective.importance_cap=null"]
    alone = planned("rl.yaml", *options, *VALUE[:2])
    own = planned("rl.yaml", *options, *VALUE, "--model.init_args.value={optimizer: {lr: 5e-6}}")
    shared = planned("rl.yaml", *options, *VALUE, "--model.init_args.value={shared: true}")
    assert own.moments["layer"]["value model"] == pytest.approx(4 * 7.57e9, rel=0.01)
    assert own.flops.keys() - alone.flops.keys() == {"old values", "value: learning"}
    dense = [own.flops[name].dense for name in ("old values", "value: learning", "forward")]
    assert dense[0] * own.settings.data["passes"] == dense[2] and 3 < dense[1] / dense[2] <= 4
    assert (shared.moments, shared.flops) == (alone.moments, alone.flops)


@pytest.mark.parametrize("options", [VALUE, [*VALUE[:2], "--model.init_args.value={}"]], ids=["no model", "no use"])
def test_a_value_model_without_its_objective_cannot_be_planned_and_the_reverse(options: list[str]) -> None:
    with pytest.raises(ValueError, match=r"objective\.value=true"):
        planned("debug/rl.yaml", "--memory=1GB", *options)


def test_a_config_that_names_no_objective_is_planned_by_the_modules_own() -> None:
    named, unnamed = (planned("debug/rl.yaml", "--memory=1GB", *more) for more in ([], ["--objective=null"]))
    assert named.settings.objective is not None
    assert type(unnamed.settings.objective) is type(named.settings.objective)
    assert unnamed.peak == named.peak


MESHES = {"fsdp": (1, 16, 1, False), "hybrid": (2, 8, 1, True), "fsdp_tp": (1, 8, 2, False)}


@pytest.mark.parametrize("strategy", MESHES)
def test_the_mesh_is_that_of_the_strategy(strategy: str) -> None:
    overlay = f"--config={CONFIGS / 'strategy' / f'{strategy}.yaml'}"
    hosts = ["--trainer.num_nodes=2", "--trainer.devices=8"]
    plan = planned("recipe/dirl_8b_rl.yaml", overlay, *hosts, *GPU_8B)
    assert plan.settings.mesh == MESHES[strategy]
    copies = 2 if strategy == "hybrid" else 1
    weights = 4 * plan.settings.shape.parameters * copies / 16
    assert plan.moments["head"]["weights"] == pytest.approx(weights)
    assert plan.files.checkpoint == 12 * plan.settings.shape.parameters, "once, whatever the number of copies"
    assert plan.files.per_process == plan.files.checkpoint / 16
    assert plan.files.export == 2 * plan.settings.shape.parameters


def test_cpu_offload_leaves_the_device_what_is_gathered_and_says_what_the_host_holds() -> None:
    strategies = [f"--config={CONFIGS / 'strategy' / f'{name}.yaml'}" for name in ("fsdp", "fsdp_offload")]
    usual, offloaded = (planned("recipe/dirl_8b_sft.yaml", name, "--devices=8", *GPU_8B) for name in strategies)
    for part in ("weights", "gradients", "optimizer state"):
        assert usual.moments["head"][part] > 0 == offloaded.moments["head"][part]
    assert offloaded.peak[1] < usual.peak[1]
    assert any("host memory: 15.3 GiB a process" in note for note in offloaded.notes)


def test_hours_follow_from_a_utilisation_and_the_steps_of_the_config(tmp_path: Path) -> None:
    plan = planned("recipe/dirl_8b_sft.yaml", "--devices=8", *GPU_8B, "--utilisation=0.5")
    useful = plan.flops["forward"].total + plan.flops["backward"].total
    assert plan.hours is not None and plan.hours.total is not None
    assert plan.hours.training_s == pytest.approx(useful / (8 * 989e12 * 0.5))
    assert plan.hours.total == pytest.approx(100 * plan.hours.training_s / 3600)
    measured = tmp_path / "metrics.csv"
    measured.write_text("step,throughput/mfu\n0,0.01\n1,0.25\n2,\n3,0.26\n")
    again = planned("recipe/dirl_8b_sft.yaml", "--devices=8", *GPU_8B, f"--utilisation={measured}")
    assert again.hours is not None
    assert again.hours.training_s == pytest.approx(plan.hours.training_s * 2)


def test_hours_of_rl_are_of_rollouts_too_where_an_engines_rate_is_known() -> None:
    options = ["--devices=8", *GPU_8B, "--response_tokens=1000", "--utilisation=0.4"]
    without, known = (
        planned("recipe/dirl_8b_rl.yaml", *options, *more) for more in ([], ["--rollout_tokens_per_s=2000"])
    )
    assert without.hours is not None and without.hours.rollout_s is None
    assert known.hours is not None and known.hours.rollout_s == pytest.approx(128 * 32 * 1000 / (8 * 2000))
    assert known.hours.steps == 40


def test_the_report_says_files_and_hours(capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--config={CONFIGS / 'recipe' / 'dirl_8b_rl.yaml'}", "--devices=8", *GPU_8B, "--utilisation=0.4"]
    main(["plan", *options])
    said = " ".join(capsys.readouterr().out.split())
    for text in ("a checkpoint: ", "an export: ", "40 steps: "):
        assert text in said
