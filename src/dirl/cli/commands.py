"""The commands rollout and export. Signatures are their options."""

import sys
from pathlib import Path

import torch

from dirl.checkpoints.files import PLACES
from dirl.checkpoints.reading import METADATA, read
from dirl.cli.engine_loading import load_engine
from dirl.cli.prompt_data import PromptData
from dirl.models import ModelSource, PretrainedModel, export_model
from dirl.models.checkpoint_weights import CheckpointWeights
from dirl.models.export import ExportDtype
from dirl.models.families import ModelFamily
from dirl.models.families.weights import empty_backbone, named_tensors, weight_shapes
from dirl.models.folder import check_replaceable
from dirl.models.weight_writer import check_size
from dirl.outputs import check_new_file
from dirl.progress_bar import bar
from dirl.rollout import RolloutEngine, TorchEngine
from dirl.rollout.annotations import annotations
from dirl.rollout.lengths import check_positions
from dirl.rollout.sample import sample
from dirl.tasks import Task
from dirl.trajectory_files import write_trajectories
from dirl.types import DecodingParams


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
        source: the model: a folder, hub name or checkpoint, or a class with its options.
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
    _check_checkpoint(Path(ckpt_path).expanduser())
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


def _check_checkpoint(path: Path) -> None:
    """ValueError for what is no checkpoint at first sight, with those that lie in the folder."""
    if (path / "config.json").is_file():
        raise ValueError(
            f"ckpt_path={path} is a Hugging Face model and no checkpoint of a run: there is nothing to export"
        )
    inside = [] if (path / METADATA).is_file() else [str(file) for place in PLACES for file in sorted(path.glob(place))]
    if inside:
        raise ValueError(f"ckpt_path={path} is a folder with {', '.join(inside)}: name one of them")


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples={samples}: use at least 1")
