"""The demo: data, SFT, DiPO, a table of before and after, curves, one answer as it was denoised, a report.

It runs the same commands that a user would: two `fit`s with the configs of `dirl/configs/demo`.
"""

import time
from importlib.resources import files
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from dirl.demo.data import write_task_files
from dirl.evaluation.report import print_metrics
from dirl.finite import dumps
from dirl.models import PretrainedModel
from dirl.report.curves import learning_curves
from dirl.report.denoising import denoising_picture
from dirl.report.denoising_text import denoising_text
from dirl.report.run_data import write_report
from dirl.report.run_logs import before_and_after, columns, evaluations
from dirl.report.trace import Answer
from dirl.rollout import TorchEngine
from dirl.rollout.sample import sample
from dirl.tasks import Arithmetic, Countdown, GeneratedTask, Sudoku
from dirl.types import DecodingParams

TASKS: dict[str, type[GeneratedTask]] = {task.name: task for task in (Arithmetic, Countdown, Sudoku)}
SHOWN = ("accuracy", "tokens_per_step", "response_length", "truncated")


def run_demo(task_name: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Run all of it in `folder`; returns {sampled/greedy before/after: metrics}, which it also prints."""
    console = Console()
    started = time.perf_counter()
    task = TASKS[task_name](seed=seed)
    write_task_files(task, folder / "data")
    console.print(
        f"[bold]{task.name}[/]: the teacher of the SFT data is right in {task.teacher_accuracy:.0%} of its solutions"
    )

    console.rule("stage 1: SFT")
    fit("sft", folder, sft_options(task, folder))
    between = time.perf_counter()
    console.rule("stage 2: DiPO")
    fit("rl", folder, rl_options(task, folder))
    finished = time.perf_counter()

    results = before_and_after(folder / "rl")
    draw_curves(folder, results)
    picture = draw_answer(task, folder, console)
    report = folder / "report.html"
    write_report([folder / "sft", folder / "rl"], report)
    console.rule("result")
    print_metrics(
        {name: {k: values[k] for k in SHOWN} for name, values in results.items()}, title=f"{task.name}, held out"
    )
    console.print(f"SFT {between - started:.0f} s, DiPO {finished - between:.0f} s, seed {seed}")
    console.print(f"model (Hugging Face folder): {folder / 'rl' / 'model'}")
    console.print(f"learning curves: {folder / 'curves.png'}")
    console.print(f"one answer, step by step: {picture}")
    console.print(f"report of both stages, for a browser: {report}")
    console.print(f"ask it something: lightning run chat --history false --model {folder / 'rl' / 'model'}")
    (folder / "results.json").write_text(dumps(results, "results.json", indent=1), encoding="utf-8")
    return results


def fit(stage: str, folder: Path, options: dict[str, object]) -> None:
    """`dirl fit` with a demo config, its options filled in and written to `folder`, so that it can be run again."""
    from dirl.cli.main import main

    config = OmegaConf.load(str(files("dirl.configs").joinpath("demo", f"{stage}.yaml")))
    for name, value in options.items():
        OmegaConf.update(config, name, str(value) if isinstance(value, Path) else value)
    OmegaConf.save(config, folder / f"{stage}.yaml")
    main(["fit", "--config", str(folder / f"{stage}.yaml")])


def sft_options(task: GeneratedTask, folder: Path) -> dict[str, object]:
    return {
        **common_options(task, folder / "sft"),
        "model.init_args.source.init_args.alphabet": task.alphabet,
        "model.init_args.source.init_args.words": list(task.words),
        "model.init_args.source.init_args.seed": task.seed,
    }


def rl_options(task: GeneratedTask, folder: Path) -> dict[str, object]:
    decoding = {"temperature": 1.0, "max_response_tokens": task.max_response_tokens}
    return {
        **common_options(task, folder / "rl"),
        "rollout.seed": task.seed,
        "evaluate.decoding": {"sampled": decoding, "greedy": {**decoding, "temperature": 0.0}},
        "model.init_args.source.init_args.path": folder / "sft" / "model",
        "model.init_args.decoding": decoding,
        "data.init_args.max_prompt_tokens": task.max_prompt_tokens,
    }


def common_options(task: GeneratedTask, root: Path) -> dict[str, object]:
    return {
        "seed_everything": task.seed,
        "trainer.default_root_dir": root,
        "task": {"class_path": f"dirl.tasks.{type(task).__name__}", "init_args": {"seed": task.seed}},
        "data.init_args.seed": task.seed,
    }


def draw_curves(folder: Path, results: dict[str, dict[str, float]]) -> None:
    points = [{"step": row["step"], "accuracy": row["eval/sampled/accuracy"]} for row in evaluations(folder / "rl")]
    sft = columns(folder / "sft", {"train/loss": "loss", "val/nelbo_per_token": "validation_nelbo"})
    names = {"rollout/reward": "reward", "rollout/tokens_per_step": "tokens_per_step", "train/entropy": "entropy"}
    levels = {label: results[f"sampled, {label}"]["accuracy"] for label in ("before RL", "after RL")}
    learning_curves(folder / "curves.png", sft, columns(folder / "rl", names) + points, levels)


def draw_answer(task: GeneratedTask, folder: Path, console: Console) -> Path:
    """Sample a few answers of the trained model; the one of most denoising steps as a picture and in the terminal."""
    from dirl.cli.commands import PromptData, load_engine

    engine = TorchEngine()
    description = load_engine(engine, PretrainedModel(str(folder / "rl" / "model")))
    prompts = {p.prompt_id: p for p in PromptData(limit=16).load(description, task)}
    decoding = DecodingParams(max_response_tokens=task.max_response_tokens)
    size = description.spec.block_size
    made = sample(engine, prompts.values(), 1, decoding, seed=(0,))
    longest = max(made, key=lambda t: (t.denoising_steps(size), t.prompt_id))
    answer = Answer(
        prompt_text=prompts[longest.prompt_id].question,
        tokens=[str(description.tokenizer.decode([i])) for i in longest.response_ids],
        step_map=longest.step_map,
        logprobs=longest.behaviour_logprobs,
        response_length=longest.response_length,
        block_size=size,
        first_block_offset=len(longest.prompt_ids) % size,
    )
    console.print(denoising_text(answer))
    return denoising_picture(folder / "denoising.png", answer)
