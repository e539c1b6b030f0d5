"""The parts of an evaluation: each decoding of each task by each model, with its prompts and who judges."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dirl.cli.prompt_data import PromptData
from dirl.evaluation import EvaluationTask, Settings
from dirl.evaluation.provenance import described, model_settings, part_settings, task_label
from dirl.evaluation.sweep import Sweep
from dirl.models import ModelDescription, ModelSource, PretrainedModel
from dirl.rewards import Scorer
from dirl.rollout import RolloutEngine
from dirl.rollout.lengths import check_positions
from dirl.types import Prompt


@dataclass(frozen=True)
class Model:
    """A model at one block size."""

    name: str
    """Empty: the only one."""
    label: str
    source: ModelSource
    description: ModelDescription


@dataclass(frozen=True)
class Part:
    model: Model
    task_name: str
    """Empty: the only one."""
    decoding_name: str
    task: EvaluationTask
    settings: Settings
    prompts: list[Prompt]
    scorer: Scorer

    @property
    def name(self) -> str:
        """The name that its files begin with."""
        return "/".join(name for name in (self.model.name, self.task_name, self.decoding_name) if name)

    @property
    def task_label(self) -> str:
        return self.task_name or task_label(self.task.task)


def models_of(sources: Mapping[str, ModelSource], sweep: Sweep) -> Iterator[Model]:
    """Each of the models at each block size of the sweep."""
    for name, source in sources.items():
        label = name or (source.path if isinstance(source, PretrainedModel) else type(source).__name__)
        own = source.describe().spec.block_size
        for size in sweep.sizes(own, label):
            if size is None:
                yield Model(name, label, source, source.describe())
            else:
                sized = f"{name or 'model'}@b{size}"
                yield Model(sized, f"{label}@b{size}", source, with_block_size(source.describe(), size))


def with_block_size(description: ModelDescription, size: int) -> ModelDescription:
    """The same model, that decodes blocks of another size."""
    description.config.block_size = size
    return dataclasses.replace(description, spec=dataclasses.replace(description.spec, block_size=size))


def parts_of(
    models: list[Model],
    tasks: Mapping[str, EvaluationTask],
    scorers: Mapping[str, Scorer],
    data: PromptData,
    engine: RolloutEngine,
    settings: Mapping[str, Any],
) -> list[Part]:
    """All of them, with their prompts; ValueError for prompts that are too long for a model.

    Args:
        settings: options of `Settings` that all parts have in common.
    """
    found = []
    for model in models:
        for name, task in tasks.items():
            split, limit = task.split or data.split, task.limit or data.limit
            prompts = dataclasses.replace(data, split=split, limit=limit).load(model.description, task.task)
            decoding = task.decoding or {}
            option = f"tasks.{name}.decoding" if name else "decoding"
            named = {f"{option}.{key}": one for key, one in decoding.items()}
            check_positions(
                prompts, named, model.description.config, model.description.spec.block_size, engine
            )  # fmt: skip
            for key, one in decoding.items():
                own = Settings(one, task.samples or 1, **settings)
                found.append(Part(model, name, key, task, own, prompts, scorers[name]))
    return found


def settings_of(part: Part, engine: Mapping[str, Any], kind: RolloutEngine) -> dict[str, Any]:
    """What decides the numbers of a part, as plain values.

    Args:
        engine: class and options of the engine.
        kind: the engine itself.
    """
    task = described(part.task.task) | {"split": part.task.split, "limit": part.task.limit}
    model = model_settings(part.model.source, part.model.description)
    return part_settings(model, task, part.prompts, part.scorer, part.settings, kind, engine)
