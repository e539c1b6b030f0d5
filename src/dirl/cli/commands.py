"""The commands rollout, evaluate and export. Signatures are their options."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dirl.checkpoints.reading import read
from dirl.data.prompt_template import check_template
from dirl.data.prompts import PromptEncoder
from dirl.data.reading import OnBadRow
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
from dirl.rewards import Reward, Scorer
from dirl.rollout import RolloutEngine, TorchEngine
from dirl.rollout.lengths import check_positions
from dirl.rollout.sample import sample
from dirl.tasks import Files
from dirl.trajectory_files import write_trajectories
from dirl.types import DecodingParams, Prompt


@dataclass(frozen=True)
class PromptData:
    """Questions to answer.

    Args:
        path: file, folder or hub name.
        split: of a hub dataset.
        limit: use the first so many; None: all.
        prompt_template: what is asked, with `{question}` in it; None: the question alone.
        on_bad_row: a row that cannot be used is an error, or is skipped and counted.
    """

    path: str
    split: str = "test"
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

    def load(self, description: ModelDescription) -> list[Prompt]:
        limits = (self.max_prompt_tokens, self.overflow, self.chat_template_kwargs, self.on_bad_row)
        encode = PromptEncoder(description, *limits, quiet=False)
        columns = (self.question_column, self.answer_column)
        files = Files(None, self.path, *columns, self.system_prompt, self.prompt_template, val_split=self.split)
        prompts = files.prompts("val", encode)
        if encode.counts.left_out:
            print(f"{self.path}: {encode.counts}")
        return prompts[: self.limit]


def rollout(
    source: ModelSource,
    data: PromptData,
    output: str,
    engine: RolloutEngine = TorchEngine(),  # noqa: B008 - not set up until used
    decoding: DecodingParams = DecodingParams(),
    samples: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Sample responses and write them as trajectories (JSON Lines).

    Args:
        source: the model.
        data: the prompts.
        output: file to write; the replay engine trains from it.
        engine: what generates.
        decoding: how to sample.
        samples: responses per prompt.
        seed: of the requests.
        overwrite: an existing file is replaced.
    """
    _check_samples(samples)
    check_new_file(Path(output), "output", overwrite)
    description = source.describe()  # prompts are looked at before weights are loaded
    prompts = data.load(description)
    check_positions(prompts, {"decoding": decoding}, description.config, description.spec.block_size, engine)
    load_engine(engine, source, description)
    made = sample(engine, prompts, samples, decoding, (seed,))
    trajectories = bar(made, total=len(prompts) * samples, desc="rollout")
    part = Path(f"{output}.part")  # so that half of them are not taken for all
    try:
        count = write_trajectories(part, trajectories)
    except BaseException:
        print(f"what was made until now is in {part}", file=sys.stderr)
        raise
    part.replace(output)
    engine.close()
    print(f"{count} trajectories written to {output}")


def evaluate(
    source: ModelSource,
    data: PromptData,
    rewards: list[Reward],
    decoding: dict[str, DecodingParams],
    output: str | None = None,
    engine: RolloutEngine = TorchEngine(),  # noqa: B008 - not set up until used
    samples: int = 1,
    reward_workers: int = 2,
    reward_timeout_s: float = 10.0,
    on_reward_error: Literal["raise", "drop_group"] = "drop_group",
    seed: int = 0,
    correct: str | None = None,
    overwrite: bool = False,
) -> None:
    """Sample responses, score them, and print a table of metrics.

    Args:
        source: the model.
        data: the prompts.
        rewards: their weighted sum is the reward.
        decoding: settings by name, a column of the table each.
        output: folder for metrics.json and the trajectories; None: nothing is written.
        engine: what generates.
        samples: responses per prompt (greedy decoding: one).
        reward_workers: processes for rewards that are not cheap.
        reward_timeout_s: time limit of one reward.
        on_reward_error: `raise`, or `drop_group`: the response is counted as lost, and as wrong.
        seed: of the requests.
        correct: name of the reward that says what is correct (above 0); None: the first that judges, as `accuracy` and
            `exact_answer` do and `boxed` and `length` do not.
        overwrite: files in an existing folder are replaced.
    """
    _check_samples(samples)
    if not decoding:
        raise ValueError("decoding is empty: name at least one setting, e.g. --decoding '{greedy: {temperature: 0}}'")
    if output is not None:
        check_new_folder(Path(output), "output", overwrite)
    scorer = Scorer(rewards, reward_workers, reward_timeout_s, on_reward_error, correct)
    _ = scorer.correctness  # an error now and not after the generation
    description = source.describe()
    prompts = data.load(description)
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
            write_trajectories(Path(output) / f"{name}.jsonl", result.trajectories)
    engine.close()
    scorer.close()
    if output is not None:
        (Path(output) / "metrics.json").write_text(dumps(metrics, "metrics.json", indent=1), encoding="utf-8")
    print_metrics(metrics)


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
