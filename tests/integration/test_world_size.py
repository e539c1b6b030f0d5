"""Whole runs that are resumed with another number of processes, and again with another one, end as in one go.

Each case is a run in one go with two processes; one that goes on from a checkpoint of it with one process; and one that
goes on from a checkpoint of that one with two. In all cases the first checkpoint is in the middle of an epoch.
"""

from collections import Counter
from itertools import chain as joined
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.held import moments, ordered, together, whole_state
from tests.integration.identity import checkpoint, differences
from tests.integration.observed import steps
from tests.integration.several_runs import fit_all
from tests.integration.toy import metrics, rl_overlay, write_rl, write_sft

from dirl.trajectory_files import read_trajectories

DEBUG = Path(__file__).parents[2] / "configs" / "debug"
OBSERVED = "trainer:\n  callbacks+:\n    - class_path: tests.integration.observed.Observed\n"
SAVER = """    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 3, save_top_k: -1, filename: "{step}"}
"""
# Adam divides by the root of a second moment: with its usual epsilon, rounding of a gradient near zero moves a weight
# by up to lr; with this one, an error of 1e-7 in a gradient moves it by at most 1e-3 of lr.
OPTIMIZER = ["--model.init_args.optimizer.eps=1e-4", "--model.init_args.optimizer.schedule=cosine"]
LAST = 12
"""Steps of every run, four an epoch."""


class Case(NamedTuple):
    strategies: tuple[str, str, str]
    """Of the run in one go, and of the two that go on, with one process and with two."""
    args: list[object]
    points: tuple[int, int]
    """Steps after which the number of processes changes."""


class Chain(NamedTuple):
    case: Case
    whole: Path
    one: Path
    two: Path

    @property
    def changes(self) -> list[tuple[Path, Path, int]]:
        """The run before, the one that goes on, the step between them."""
        return [(self.whole, self.one, self.case.points[0]), (self.one, self.two, self.case.points[1])]


pytestmark = pytest.mark.slow

NAMES = ["sft-ddp", "sft-fsdp", "rl-ddp", "rl-fsdp", "overlap", "surplus"]
ALWAYS = ["sft-fsdp", "overlap"]
"""What `make test` runs: both stages, with DDP, FSDP2 and one process; `make thorough`: all."""


def each(*names: str) -> pytest.MarkDecorator:
    """A test of these chains of runs."""
    marks = {name: [] if name in ALWAYS else [pytest.mark.thorough] for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in names])


def cases(folder: Path) -> list[Case]:
    """In the order of `NAMES`."""
    sft = sft_args(folder)
    plain = rl_args(folder, "plain", 8)
    overlap = rl_args(folder, "overlap", 8, "overlap: true")
    surplus = rl_args(folder, "surplus", 40, "oversample: 1.5")
    return [
        Case(("ddp", "single", "ddp"), sft, (3, 6)),
        Case(("fsdp", "fsdp", "fsdp"), sft, (3, 6)),
        Case(("ddp", "single", "ddp"), plain, (6, 9)),
        Case(("fsdp", "fsdp", "fsdp"), plain, (6, 9)),
        Case(("ddp", "single", "fsdp"), overlap, (3, 6)),
        Case(("ddp", "single", "ddp"), surplus, (6, 9)),
    ]


def sft_args(folder: Path) -> list[object]:
    """Each of 32 conversations once an epoch; some steps have several rows, another number on each process."""
    observed, data = folder / "sft.yaml", write_sft(folder / "sft.jsonl", 32)
    observed.write_text(OBSERVED + SAVER)
    args = ["--config", DEBUG / "sft.yaml", "--config", observed, f"--data.init_args.train={data}"]
    args += ["--trainer.max_steps=-1", "--trainer.max_epochs=3", "--data.init_args.token_budget=180"]
    return [*args, *OPTIMIZER]


def rl_args(folder: Path, name: str, prompts: int, rollout: str = "") -> list[object]:
    """Two passes over each rollout of four prompts, so that old log-probs matter, and those of a reference."""
    observed = folder / "observed.yaml"
    observed.write_text(OBSERVED)
    overlay = rl_overlay(folder / f"{name}.yaml", rollout=f"save_trajectories: made\n{rollout}")
    overlay.write_text(overlay.read_text().replace("every_n_train_steps: 1,", "every_n_train_steps: 3,"))
    data = write_rl(folder / f"{name}.jsonl", prompts)
    args = ["--config", DEBUG / "rl.yaml", "--config", overlay, "--config", observed]
    args += [f"--data.init_args.train={data}", "--data.init_args.passes=2", "--data.init_args.token_budget=200"]
    args += ["--objective.init_args={importance_cap: 2, clip_low: 0.01, kl_coef: 0.1}", "--trainer.max_epochs=3"]
    return [*args, *OPTIMIZER]


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Chain]:
    """The runs of all cases that are asked for; those of one number of processes are made by the same ones."""
    folder = tmp_path_factory.mktemp("world_size")
    here = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    asked = {item.callspec.params["name"] for item in here}
    made = {
        name: Chain(case, folder / "whole" / name, folder / "one" / name, folder / "two" / name)
        for name, case in zip(NAMES, cases(folder), strict=True)
        if name in asked
    }

    def goes_on(name: str, number: int, before: Path) -> list[object]:
        case = made[name].case
        point = checkpoint(before, case.points[number - 1])
        return [case.strategies[number], *case.args, f"--ckpt_path={point}"]

    fit_all(folder / "whole", {n: [c.case.strategies[0], *c.case.args] for n, c in made.items()}, 2)
    fit_all(folder / "one", {n: goes_on(n, 1, c.whole) for n, c in made.items()}, 1)
    fit_all(folder / "two", {n: goes_on(n, 2, c.one) for n, c in made.items()}, 2)
    return made


@each(*NAMES)
def test_weights_optimizer_schedule_and_counts_arrive_to_the_bit(name: str, chains: dict[str, Chain]) -> None:
    for before, after, step in chains[name].changes:
        left, arrived = (whole_state(path) for path in (checkpoint(before, step), after / "resumed.ckpt"))
        assert left["global_step"] == step
        assert len(moments(left)) > 40
        assert all(moment.any() for moment in moments(left))
        assert not differences(ordered(moments(left)), ordered(moments(arrived)))
        for state in (left, arrived):
            state.get("RLDataModule", {}).pop("ranks", None)  # see the next test
            if checkpoint(before, step).is_file() != (after / "resumed.ckpt").is_file():
                for layout in ("optimizer_states", "optimizer_0"):  # parameters go by number, or by name
                    state.pop(layout, None)
        assert not differences(left, arrived)


@each("rl-ddp", "rl-fsdp", "overlap", "surplus")
def test_prompts_surplus_buffer_and_the_prefetched_rollout_are_given_out_whole(
    name: str, chains: dict[str, Chain]
) -> None:
    for before, after, step in chains[name].changes:
        paths = (checkpoint(before, step), after / "resumed.ckpt")
        ranks = [whole_state(path)["RLDataModule"]["ranks"] for path in paths]
        assert sorted(map(len, ranks)) == [1, 2]
        left, arrived = map(together, ranks)
        assert not differences(left, arrived)
        assert left["epoch"] == step // 4
        assert all(len(rows) > 1 for rows in left["rows"])
        assert len(left["rows"]) == 2
        assert all(
            {"old_logprobs", "reference_logprobs"} <= row["columns"].keys() for rows in left["rows"] for row in rows
        )
        assert len(set(left["prompts"])) == len(left["prompts"]) > 0
        assert bool(left["surplus"]) == (name == "surplus")
        assert bool(left["prefetched"]) == (name == "overlap")


@each("sft-ddp", "sft-fsdp")
def test_every_step_has_the_conversations_of_one_go_and_every_epoch_each_of_them_once(
    name: str, chains: dict[str, Chain]
) -> None:
    chain = chains[name]
    whole, one, two = map(steps, (chain.whole, chain.one, chain.two))
    assert list(whole) == [(epoch, step) for epoch in range(3) for step in range(4)]
    assert all(len(ranks) == 2 and all(ranks) for ranks in whole.values())
    first, second = chain.case.points
    for resumed, done, processes in ((one, first, 1), (two, second, 2)):
        assert list(resumed) == list(whole)[done:]
        for key, ranks in resumed.items():
            assert len(ranks) == processes
            assert sorted(joined(*ranks)) == sorted(joined(*whole[key])), key
    taken = [*list(whole.values())[:first], *list(one.values())[: second - first], *two.values()]
    for epoch in range(3):
        ranks = joined(*taken[4 * epoch : 4 * epoch + 4])
        assert sorted(joined(*ranks)) == list(range(32))


@each("rl-ddp", "rl-fsdp", "overlap")
def test_every_rollout_has_the_prompts_of_one_go(name: str, chains: dict[str, Chain]) -> None:
    chain = chains[name]
    whole, one, two = map(prompts, (chain.whole, chain.one, chain.two))
    assert list(whole) == [0, 1, 2]
    assert sorted(joined(whole[0], whole[1])) == [str(i) for i in range(8)], "a pass over the data"
    assert list(one) == [2]
    assert sorted(one[2]) == sorted(whole[2])
    assert two == {}, "its checkpoint holds the last rollout"


@each("surplus")
def test_surplus_is_used_and_no_prompt_is_taken_twice(name: str, chains: dict[str, Chain]) -> None:
    chain = chains[name]
    before, after = prompts(chain.whole), prompts(chain.one)
    (held,) = whole_state(chain.one / "resumed.ckpt")["RLDataModule"]["ranks"]
    kept = [group[0]["prompt_id"] for group in held["surplus"]]
    assert len(kept) == 2
    assert set(kept) < set(after[2]), "used by the next rollout"
    assert max(Counter(joined(before[0], before[1], after[2])).values()) == 1


@each(*NAMES)
def test_steps_epochs_and_schedule_end_as_in_one_go(name: str, chains: dict[str, Chain]) -> None:
    chain = chains[name]
    last = whole_state(checkpoint(chain.whole, LAST))
    for root, done in zip((chain.one, chain.two), chain.case.points, strict=True):
        assert len(metrics(root, "train/loss")) == LAST - done + 1  # with the row of the checkpoint's step
        assert metrics(root, "step")[-1] == LAST - 1
        ended = whole_state(checkpoint(root, LAST))
        for count in ("global_step", "epoch", "loops", "lr_schedulers"):
            assert not differences(last[count], ended[count]), count


@each("sft-ddp", "sft-fsdp", "rl-ddp", "rl-fsdp", "overlap")
def test_losses_and_weights_are_those_of_one_go(name: str, chains: dict[str, Chain]) -> None:
    """A step is normalised over all processes, so only the order of its sums depends on their number: fp32 has seven
    digits, of which twelve steps of rounding may cost one or two. With surplus, which prompts meet depends on it too.
    """
    chain = chains[name]
    for root, done in zip((chain.one, chain.two), chain.case.points, strict=True):
        for metric in ("train/loss", "train/grad_norm", "train/lr"):
            first, second = metrics(chain.whole, metric)[done - 1 :], metrics(root, metric)
            # RL's losses are sums of advantages that nearly cancel: their error is that of the summands.
            assert second == pytest.approx(first, rel=1e-5, abs=1e-6), metric
        assert min(metrics(root, "train/grad_norm")) > 0
        first, second = (load_file(path / "model" / "model.safetensors") for path in (chain.whole, root))
        assert first.keys() == second.keys()
        for weight, value in first.items():
            torch.testing.assert_close(second[weight], value, rtol=1e-5, atol=1e-6)


def prompts(root: Path) -> dict[int, list[str]]:
    """By epoch, the prompts that all processes have made groups of for it."""
    found: dict[int, list[str]] = {}
    for path in sorted((root / "made").glob("epoch*.jsonl")):
        made = dict.fromkeys(trajectory.prompt_id for trajectory in read_trajectories(path))
        found.setdefault(int(path.name[5:9]), []).extend(made)
    return found
