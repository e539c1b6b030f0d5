"""The work of an evaluation: part by part, each kept when it is done, and gone on with where it was left."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dirl.cli.engine_loading import default_device, load_engine
from dirl.cli.evaluation_output import print_progress
from dirl.cli.evaluation_parts import Model, Part
from dirl.evaluation.problems import unjudged
from dirl.evaluation.provenance import made_by
from dirl.evaluation.results import Result
from dirl.evaluation.results_folder import PROBLEMS, ResultsFolder
from dirl.evaluation.run import Evaluation, run_evaluation
from dirl.progress_bar import bar
from dirl.rollout import RolloutEngine
from dirl.rollout.annotations import annotations

MUCH_TRUNCATED = 0.5
"""From this share of cut-off responses on, the limit of length is judged rather than the model."""


@dataclass
class Run:
    """All parts, model by model, each by an engine that has the model's weights.

    Args:
        settings: of each part by name, as plain values.
        folder: what has been done, and where results go; None: they are kept in memory.
        texts: words stand beside the ids of trajectories.
    """

    engine: RolloutEngine
    parts: list[Part]
    settings: Mapping[str, dict[str, Any]]
    folder: ResultsFolder | None
    texts: bool = False
    loaded: Model | None = None
    """Whose weights the engine has."""

    def results(self) -> list[Result]:
        found: list[Result] = []
        try:
            for part in self.parts:
                found.append(self._result(part))
                if len(self.parts) > 1:
                    print_progress(found[-1])
        except BaseException:
            if self.folder is not None:
                print(f"\nwhat is done is in {self.folder.path}: the same command goes on from there", file=sys.stderr)
            raise
        finally:
            self._unload()
            for part in self.parts:
                part.scorer.close()
        return found

    def _result(self, part: Part) -> Result:
        evaluation, starts = self._evaluate(part)
        return Result(
            model=part.model.label,
            task=part.task_label,
            decoding=part.decoding_name,
            block_size=part.model.description.spec.block_size,
            metrics=evaluation.metrics,
            settings=self.settings[part.name],
            starts=starts,
            problems=len(evaluation.problems),
            file=f"{PROBLEMS}/{part.name}.jsonl",
            unjudged=unjudged(evaluation.problems),
            notes=notes(part, evaluation.metrics),
            kept=evaluation.problems,
        )

    def _evaluate(self, part: Part) -> tuple[Evaluation, list[dict[str, Any]]]:
        """What the folder has is read, the rest is answered now; with what it was made, start by start."""
        annotate = annotations(part.prompts, part.model.description) if self.texts else None
        file = None if self.folder is None else self.folder.file(part.name, annotate)
        starts: list[dict[str, Any]] = []
        if file is None or not file.whole(part.prompts):
            self._load(part.model)
            starts = [made_by(self.engine, default_device())]
        if self.folder is not None:
            starts = self.folder.started(part.name, starts)
            say_other_device(part.name, starts)
        description, total = part.model.description, len(part.prompts) * part.settings.count
        with bar(total=total, desc=f"evaluate {part.name}", leave=False) as progress_bar:
            evaluation = run_evaluation(
                self.engine,
                part.prompts,
                part.scorer,
                part.settings,
                description.spec,
                description.tokenizer,
                finished=progress_bar.update,
                file=file,
            )
        return evaluation, starts

    def _load(self, model: Model) -> None:
        if self.loaded is model:
            return
        self._unload()
        load_engine(self.engine, model.source, model.description)
        self.loaded = model

    def _unload(self) -> None:
        if self.loaded is not None:
            self.engine.close()
        self.loaded = None


def say_other_device(name: str, starts: Sequence[Mapping[str, Any]]) -> None:
    """A part that goes on elsewhere has responses of both places, which may differ by rounding."""
    for what in ("device", "dtype"):
        if len(starts) > 1 and starts[-1][what] != starts[-2][what]:
            there, here = starts[-2][what], starts[-1][what]
            print(f"{name}: goes on with {what} {here}, was made with {there} until now", file=sys.stderr)


def notes(part: Part, metrics: Mapping[str, float]) -> list[str]:
    """What the metrics leave out, and why, and what makes them mean little."""
    found = []
    correct = part.scorer.correctness.name
    reward = next(reward for reward in part.scorer.rewards if reward.name == correct)
    if part.settings.count > 2 and reward.votes is None:
        found.append(f"no maj@k: the reward {correct!r} knows of no answers that a majority could vote on")
    if metrics["truncated"] >= MUCH_TRUNCATED:
        limit = part.settings.decoding.max_response_tokens
        found.append(
            f"{metrics['truncated']:.0%} of the responses were cut off by max_response_tokens={limit}: raise it"
        )
    return found
