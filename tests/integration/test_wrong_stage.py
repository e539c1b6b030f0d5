"""Settings of the other stage, or of nothing: an error or a warning before anything is made."""

from pathlib import Path

import pytest
from dirl.callbacks import Throughput

from dirl.cli.errors import shorten
from dirl.cli.fit import DirlCLI
from dirl.models import PretrainedModel
from dirl.modules.reference import say_if_unused
from dirl.objectives import DiPO

ROOT = Path(__file__).parents[2] / "configs"


def cli(tmp_path: Path, *configs: str, options: tuple[str, ...] = ()) -> DirlCLI:
    args = [word for config in configs for word in ("--config", str(ROOT / config))]
    return DirlCLI([*args, f"--trainer.default_root_dir={tmp_path}", *options], run=False)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (
            ("debug/sft.yaml", "data/local_rl.yaml"),
            "data: RLDataModule holds prompts .* SFTModule makes none: use dirl.d",
        ),
        (
            ("debug/rl.yaml", "data/local_sft.yaml"),
            "data: SFTDataModule, and RLModule learns from rollouts: use dirl.d",
        ),
    ],
)
def test_data_of_the_other_stage_are_an_error_that_names_what_to_use(
    configs: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        cli(tmp_path, *configs)


@pytest.mark.parametrize("option", ["--evaluate.samples=3", "--samples.count=2", "--engine=dirl.rollout.TorchEngine"])
def test_an_option_of_rl_in_sft_is_an_error_that_says_so(option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in the config, and SFTModule makes no rollouts; remove it"):
        cli(tmp_path, "debug/sft.yaml", options=(option,))


def test_options_of_a_kind_of_class_are_an_error_that_asks_for_a_class() -> None:
    message = 'Parser key "task":\n  Expected an instantiatable class, but dirl.tasks.Task is abstract'
    assert shorten(message).startswith("task: dirl.tasks.Task is a kind of class: name one of that kind")


def test_options_before_their_class_are_an_error_that_says_so() -> None:
    message = 'Parser key "trainer.strategy":\n  Expected a dot import path string: auto'
    assert shorten(message) == (
        "trainer.strategy: auto names no class, and these are options of one: name it before them"
    )


def test_throughput_has_a_key_and_every_run_has_one(tmp_path: Path) -> None:
    for options, peak in (((), None), (("--throughput.peak_tflops=3",), 3.0)):
        callbacks = cli(tmp_path, "debug/sft.yaml", options=options).trainer.callbacks
        assert [c.peak_tflops for c in callbacks if isinstance(c, Throughput)] == [peak]


def test_a_reference_that_no_objective_looks_at_is_told_of() -> None:
    with pytest.warns(UserWarning, match=r"model.reference: not used, as the objective \(DiPO\) has no KL term"):
        say_if_unused(PretrainedModel("x"), DiPO())


def test_a_reference_that_is_looked_at_is_not(recwarn: pytest.WarningsRecorder) -> None:
    say_if_unused(PretrainedModel("x"), DiPO(kl_coef=0.1))
    say_if_unused(None, DiPO())
    assert not recwarn.list


def test_one_device_on_a_recipe_of_many_hosts_is_one(tmp_path: Path) -> None:
    options = ("--trainer.accelerator=cpu", "--trainer.precision=32-true")
    trainer = cli(tmp_path, "recipe/dirl_8b_rl.yaml", "strategy/single.yaml", options=options).trainer
    assert (trainer.num_nodes, trainer.num_devices) == (1, 1)


@pytest.mark.parametrize("config", ["debug/sft.yaml", "debug/rl.yaml"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "accumulate_grad_batches=2",
            "trainer.accumulate_grad_batches=2: a batch is an optimizer step .* data.prompts_p",
        ),
        ("gradient_clip_val=0.5", r"trainer.gradient_clip_val=0.5: .* set model.optimizer.max_grad_norm"),
        ("overfit_batches=1", "trainer.overfit_batches=1.*: .* give data.train fewer rows"),
    ],
)
def test_options_of_the_trainer_that_have_no_part_here_are_an_error_that_says_what_has(
    config: str, option: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        cli(tmp_path, config, options=(f"--trainer.{option}",))
