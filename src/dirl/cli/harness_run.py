"""The command evaluate, where its task is one of lm-evaluation-harness."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dirl.cli.engine_loading import default_device, load_engine
from dirl.cli.evaluation_parts import Model
from dirl.cli.evaluation_run import say_other_device
from dirl.evaluation.harness.loading import Loaded, quiet
from dirl.evaluation.harness.outcome import judging_metric, measures, named_metrics, problems_of, sample_row
from dirl.evaluation.provenance import described, made_by, model_settings, prompts_digest, versions
from dirl.evaluation.results import Result
from dirl.evaluation.results_folder import PROBLEMS, ResultsFolder
from dirl.progress_bar import bar
from dirl.rollout import RolloutEngine
from dirl.rollout.lengths import check_positions
from dirl.tasks import LMEval
from dirl.types import DecodingParams, Trajectory

if TYPE_CHECKING:
    from dirl.evaluation.harness.model import Asked, EngineLM


@dataclass(frozen=True)
class HarnessPart:
    """Some tasks, answered by a model with one decoding."""

    model: Model
    decoding_name: str
    base: DecodingParams
    """How blocks are denoised; temperature and length are each task's."""

    def name(self, task: str) -> str:
        """The name that the files of one of its tasks begin with."""
        return "/".join(name for name in (self.model.name, task, self.decoding_name) if name)


@dataclass
class HarnessRun:
    """All parts, one after the other.

    Args:
        common: seed, resamples, portion.
        limit: problems of each task; None: all.
        settings: of each file by its name, as plain values.
    """

    engine: RolloutEngine
    task: LMEval
    tasks: Loaded
    limit: int | None
    common: Mapping[str, int]
    folder: ResultsFolder | None
    settings: Mapping[str, dict[str, Any]]
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """What lm_eval found of groups of tasks, by part."""
    loaded: Model | None = None

    def results(self, parts: list[HarnessPart]) -> list[Result]:
        found = []
        try:
            for part in parts:
                found += self._evaluate(part)
        except BaseException:
            if self.folder is not None:
                print(f"\nwhat is done is in {self.folder.path}: the same command goes on from there", file=sys.stderr)
                self.folder.close()
            raise
        finally:
            if self.loaded is not None:
                self.engine.close()
        return found

    def _evaluate(self, part: HarnessPart) -> list[Result]:
        from lm_eval.evaluator import simple_evaluate

        from dirl.evaluation.harness.model import EngineLM

        chat = self.task.chat_template
        if chat is None:
            chat = bool(part.model.description.tokenizer.chat_template)
        model = EngineLM(
            part.model.description, part.base, lambda asked: self._answer(part, asked), lambda a: self._check(part, a)
        )
        with quiet():
            found = simple_evaluate(
                model=model,
                tasks=list(self.task.names),
                task_manager=self.tasks.manager,
                num_fewshot=self.task.num_fewshot,
                limit=self.limit,
                bootstrap_iters=self.common["resamples"],
                system_instruction=self.task.system_prompt,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat and self.task.fewshot_as_multiturn,
                gen_kwargs=dict(self.task.generation_kwargs) or None,
            )
        for name, values in (found.get("groups") or {}).items():
            self.groups[part.name(name)] = named_metrics(values)
        return [self._result(part, name, model, found) for name in self.tasks.tasks]

    def _check(self, part: HarnessPart, asked: "list[Asked]") -> None:
        """Raise ValueError for prompts that are too long, before weights are loaded."""
        description = part.model.description
        for one in asked:
            check_positions(
                one.prompts, {f"lm_eval:{one.task}": one.decoding}, description.config, description.spec.block_size,
                self.engine,
            )  # fmt: skip

    def _answer(self, part: HarnessPart, asked: "Asked") -> dict[str, list[Trajectory]]:
        from dirl.evaluation.harness.answers import AnswersFile, answer

        name = part.name(asked.task)
        started = False

        def load() -> RolloutEngine:
            nonlocal started
            self._load(part.model)
            if self.folder is not None and not started:
                say_other_device(name, self.folder.started(name, [made_by(self.engine, default_device())]))
            started = True
            return self.engine

        path = None if self.folder is None else self.folder.path / f"{name}.jsonl"
        total = len(asked.prompts) * asked.samples
        with bar(total=total, desc=f"evaluate {name}", leave=False) as progress:
            return answer(
                asked, AnswersFile(path), load, self.common["seed"], self.common["portion"], progress.update
            )  # fmt: skip

    def _load(self, model: Model) -> None:
        if self.loaded is model:
            return
        if self.loaded is not None:
            self.engine.close()
        load_engine(self.engine, model.source, model.description)
        self.loaded = model

    def _result(self, part: HarnessPart, task: str, model: "EngineLM", found: Mapping[str, Any]) -> Result:
        name, rows = part.name(task), found["samples"][task]
        judge = judging_metric(rows)
        problems = problems_of(rows, task, model, judge)
        block_size = part.model.description.spec.block_size
        own = measures(problems, block_size, judge is not None, self.common["resamples"], self.common["seed"])
        prompts, asked = model.answers[task].prompts, model.answers[task].asked
        if self.folder is not None:
            self.folder.write_lines(f"{PROBLEMS}/{name}.jsonl", map(dataclasses.asdict, problems))
            self.folder.write_lines(f"{PROBLEMS}/{name}.lm_eval.jsonl", map(sample_row, rows))
        more = {
            "prompts": {"count": len(prompts), "digest": prompts_digest(prompts)},
            "correct": judge,
            "rewards": [],
            "decoding": dataclasses.asdict(asked[0].decoding),
            "samples": asked[0].samples,
            "num_fewshot": found["n-shot"].get(task),
            "task_version": found["versions"].get(task),
        }
        return Result(
            model=part.model.label,
            task=task,
            decoding=part.decoding_name,
            block_size=block_size,
            metrics=named_metrics(found["results"][task]) | own,
            settings=self.settings[name] | more,
            starts=[] if self.folder is None else self.folder.starts.get(name, []),
            problems=len(problems),
            file=f"{PROBLEMS}/{name}.jsonl",
            unjudged=[],
            notes=notes(task, judge, asked, found),
            kept=problems,
        )


def notes(task: str, judge: str | None, asked: "list[Asked]", found: Mapping[str, Any]) -> list[str]:
    """What stands behind the numbers of a task."""
    from dirl.evaluation.harness.decoding import ignored

    decoding = asked[0].decoding
    said = [
        f"lm_eval {version('lm_eval')}, examples before a question: {found['n-shot'].get(task, 0)}, temperature "
        f"{decoding.temperature:g}, at most {decoding.max_response_tokens} tokens"
    ]
    said += [f"accuracy is {judge}"] if judge else ["no metric says 0 or 1 of each problem: no accuracy"]
    if asked[0].samples > 1:
        said.append(f"{asked[0].samples} responses to a problem, which lm_eval judges together")
    kwargs = found["configs"].get(task, {}).get("generation_kwargs") or {}
    if unknown := ignored(kwargs):
        said.append(f"no engine obeys {', '.join(unknown)} of its generation_kwargs")
    return said


def settings_of(
    part: HarnessPart, name: str, task: LMEval, limit: int | None, engine: RolloutEngine, common: Mapping[str, int]
) -> dict[str, Any]:
    """What decides the numbers of one task, as plain values."""
    return {
        "model": model_settings(part.model.source, part.model.description),
        "task": described(task) | {"name": name, "limit": limit},
        "decoding": dataclasses.asdict(part.base),
        "seed": common["seed"],
        "portion": common["portion"],
        "engine": described(engine),
        "versions": versions(engine) | {"lm_eval": version("lm_eval")},
    }
