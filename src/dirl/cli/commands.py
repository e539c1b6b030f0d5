"""The commands rollout, evaluate and export. Signatures are their options."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from dirl.checkpoints.reading import read
from dirl.evaluation import run_evaluation
from dirl.evaluation.report import print_metrics
from dirl.finite import dumps
from dirl.models import ModelDescription, ModelSource, PretrainedModel, export_model
from dirl.models.checkpoint_weights import CheckpointWeights
from dirl.models.export import ExportDtype
from dirl.models.families import ModelFamily
from dirl.models.families.weights import empty_backbone, named_tensors, weight_shapes
from dirl.models.folder import check_replaceable
from dirl.models.weight_writer import check_size
from dirl.outputs import check_new_file, check_new_folder
from dirl.progress_bar import bar
from dirl.reading.prompt_template import check_template
from dirl.reading.prompts import PromptEncoder
from dirl.reading.rows import OnBadRow
from dirl.rewards import Reward, Scorer
from dirl.rollout import RolloutEngine, TorchEngine
from dirl.rollout.annotations import annotations
from dirl.rollout.lengths import check_positions
from dirl.rollout.sample import sample
from dirl.tasks import Files, Split, Task
from dirl.tasks.given import check_given_once, said_of_files
from dirl.trajectory_files import write_trajectories
from dirl.types import DecodingParams, Prompt


@dataclass(frozen=True)
class PromptData:
    """Questions to answer.

    Args:
        path: file, folder or hub name; None: a task is given.
        split: of a hub dataset, `test` by default; or of a task: `train` or, by default, `val`.
        limit: use the first so many; None: all.
        prompt_template: what is asked, with `{question}` in it; None: the question alone.
        on_bad_row: a row that cannot be used is an error, or is skipped and counted.
    """

    path: str | None = None
    split: str | None = None
    limit: int | None = None
    max_prompt_tokens: int = 1024
    overflow: Literal["drop", "error"] = "error"
    question_column: str = "question"
    answer_column: str = "ground_truth_answer"
    system_prompt: str | None = None
    chat_template_kwargs: dict | None = None
    prompt_template: str | None = None
    on_bad_row: OnBadRow = "error"

    def __post_init__(self) -> None:
        for name in ("limit", "max_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value}: use at least 1" + (", or null" if name == "limit" else ""))
        check_template(self.prompt_template)

    def load(self, description: ModelDescription, task: Task | None = None) -> list[Prompt]:
        """The prompts of the task, if there is one, or those of the path."""
        limits = (self.max_prompt_tokens, self.overflow, self.chat_template_kwargs, self.on_bad_row)
        encode = PromptEncoder(description, *limits, quiet=False)
        task, split = task or self.files(), self.split_of(task)
        prompts = task.prompts(split, encode)
        if not prompts:
            raise ValueError(
                f"{task.origin(split)}: the task has no such prompts; name another, or a split by data.split"
            )
        if encode.counts.left_out:
            print(f"{task.origin(split)}: {encode.counts}")
        return prompts[: self.limit]

    def check(self, task: Task | None) -> None:
        """ValueError for both path and task, for neither, and for a split that no task has."""
        check_given_once(task, {"path": self.path})
        self.split_of(task)
        if unused := said_of_files(task, self.files().options()):
            print(unused, file=sys.stderr)

    def split_of(self, task: Task | None) -> Split:
        """Whose prompts are asked for; files have no others than the validation's."""
        if task is None or self.split is None:
            return "val"
        if self.split not in get_args(Split):
            raise ValueError(f"data.split={self.split!r}: a task has {' and '.join(get_args(Split))}; name one of them")
        return cast(Split, self.split)

    def files(self) -> Files:
        columns = (self.question_column, self.answer_column)
        return Files(None, self.path, *columns, self.system_prompt, self.prompt_template, self.split or "test")


def rollout(
    source: ModelSource,
    data: PromptData,
    output: str,
    engine: RolloutEngine = TorchEngine(),  # noqa: B008 - not set up until used
    task: Task | None = None,
    decoding: DecodingParams = DecodingParams(),
    samples: int = 1,
    seed: int = 0,
    texts: bool = False,
    overwrite: bool = False,
) -> None:
    """Sample responses and write them as trajectories (JSON Lines).

    Args:
        source: the model.
        data: the prompts.
        output: file to write; the replay engine trains from it.
        engine: what generates.
        task: whose prompts are answered, in place of those of data.path.
        decoding: how to sample.
        samples: responses per prompt.
        seed: of the requests.
        texts: question, truth and the response in words beside the ids, for `trace` and people.
        overwrite: an existing file is replaced.
    """
    _check_samples(samples)
    data.check(task)
    check_new_file(Path(output), "output", overwrite)
    description = source.describe()  # prompts are looked at before weights are loaded
    prompts = data.load(description, task)
    check_positions(prompts, {"decoding": decoding}, description.config, description.spec.block_size, engine)
    load_engine(engine, source, description)
    made = sample(engine, prompts, samples, decoding, (seed,))
    trajectories = bar(made, total=len(prompts) * samples, desc="rollout")
    part = Path(f"{output}.part")  # so that half of them are not taken for all
    try:
        count = write_trajectories(part, trajectories, annotations(prompts, description) if texts else None)
    except BaseException:
        print(f"what was made until now is in {part}", file=sys.stderr)
        raise
    part.replace(output)
    engine.close()
    print(f"{count} trajectories written to {output}")


def evaluate(
    source: ModelSource,
    data: PromptData,
    decoding: dict[str, DecodingParams],
    task: Task | None = None,
    rewards: list[Reward] | None = None,
    output: str | None = None,
    engine: RolloutEngine = TorchEngine(),  # noqa: B008 - not set up until used
    samples: int = 1,
    reward_workers: int = 2,
    reward_timeout_s: float = 10.0,
    on_reward_error: Literal["raise", "drop_group"] = "drop_group",
    seed: int = 0,
    correct: str | None = None,
    texts: bool = False,
    overwrite: bool = False,
) -> None:
    """Sample responses, score them, and print a table of metrics.

    Args:
        source: the model.
        data: the prompts.
        decoding: settings by name, a column of the table each.
        task: whose prompts are answered, in place of those of data.path.
        rewards: their weighted sum is the reward; None: those of the task.
        output: folder for metrics.json and the trajectories; None: nothing is written.
        engine: what generates.
        samples: responses per prompt (greedy decoding: one).
        reward_workers: processes for rewards that are not cheap.
        reward_timeout_s: time limit of one reward.
        on_reward_error: `raise`, or `drop_group`: the response is counted as lost, and as wrong.
        seed: of the requests.
        correct: name of the reward that says what is correct (above 0); None: the first that judges, as `accuracy` and
            `exact_answer` do and `boxed` and `length` do not.
        texts: question, truth and the response in words beside the ids of the trajectories, for `trace` and people.
        overwrite: files in an existing folder are replaced.
    """
    _check_samples(samples)
    if not decoding:
        raise ValueError("decoding is empty: name at least one setting, e.g. --decoding '{greedy: {temperature: 0}}'")
    data.check(task)
    if output is not None:
        check_new_folder(Path(output), "output", overwrite)
    scorer = Scorer(_rewards(rewards, task), reward_workers, reward_timeout_s, on_reward_error, correct)
    _ = scorer.correctness  # an error now and not after the generation
    description = source.describe()
    prompts = data.load(description, task)
    named = {f"decoding.{name}": one for name, one in decoding.items()}
    check_positions(prompts, named, description.config, description.spec.block_size, engine)
    load_engine(engine, source, description)
    metrics = {}
    for name, one in decoding.items():
        total = len(prompts) * (1 if one.temperature == 0 else samples)
        model = (description.spec, description.tokenizer)
        with bar(total=total, desc=f"evaluate {name}") as progress_bar:
            result = run_evaluation(engine, prompts, scorer, one, *model, samples, seed, finished=progress_bar.update)
        metrics[name] = result.metrics
        if output is not None:
            annotate = annotations(prompts, description) if texts else None
            write_trajectories(Path(output) / f"{name}.jsonl", result.trajectories, annotate)
    engine.close()
    scorer.close()
    if output is not None:
        (Path(output) / "metrics.json").write_text(dumps(metrics, "metrics.json", indent=1), encoding="utf-8")
    print_metrics(metrics)


def _rewards(rewards: list[Reward] | None, task: Task | None) -> list[Reward]:
    """Those that are given, else the task's."""
    found = rewards if rewards is not None or task is None else task.rewards()
    if not found:
        none = "none are given" if task is None else f"none are given, and task={type(task).__name__} names none"
        raise ValueError(f"rewards: {none}; name one, e.g. --rewards '[dirl.rewards.Accuracy]'")
    return found


def export(
    ckpt_path: str,
    output: str,
    dtype: ExportDtype = "source",
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    family: ModelFamily | None = None,
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder; needs no GPU and no other process.

    Args:
        ckpt_path: file or, from a sharded run, folder; of SFT or RL.
        output: folder to write.
        dtype: of the stored weights; `source`: as the model that training began from was stored.
        max_shard_size: of a file of weights; a larger model is written as several.
        overwrite: an existing model is replaced.
        family: of the model, where it is none of this package's; see its source.
    """
    check_size(max_shard_size, "max_shard_size")
    folder = Path(output)
    check_replaceable(folder)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"output={output!r} holds a model already: name another folder, or add --overwrite=true")
    checkpoint = read(Path(ckpt_path).expanduser())  # every byte of it: a damaged one stops here
    description = PretrainedModel(str(checkpoint.path), family=family).describe()
    weights = CheckpointWeights(checkpoint.path)
    backbone = empty_backbone(description.family, description.config, torch.float32)
    names = [name for name, _ in named_tensors(backbone)]
    read_one_by_one = (
        part for name in bar(names, desc="export") for part in description.family.split(name, weights.read(name))
    )
    shapes = weight_shapes(description.family, backbone)
    export_model(folder, description, read_one_by_one, shapes, dtype, max_shard_size)
    print(f"model of step {checkpoint.values['global_step']} written to {folder}")


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples={samples}: use at least 1")


def load_engine(
    engine: RolloutEngine, source: ModelSource, description: ModelDescription | None = None
) -> ModelDescription:
    """Set the engine up for a model and give it the model's weights, as version 0."""
    description = description or source.describe()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine.setup(description.config, description.tokenizer, description.spec, device)
    backbone = source.build(description.config)
    engine.update_weights(description.family.weights(backbone, engine.dtype), 0)
    return description
