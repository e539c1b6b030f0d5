"""python -m benchmarks.study [--tasks ...] [--objectives ...] [--seeds ...]: runs what is missing, prints, saves."""

import argparse
from pathlib import Path
from statistics import fmean

from benchmarks import record
from benchmarks.study import cases, runs, tables
from benchmarks.study.cases import Case


def main() -> None:
    args = parsed()
    pairs = [(task, objective) for task in args.tasks for objective in args.objectives]
    tuning = [
        Case(cases.TUNING_TASK, objective, cases.TUNING_SEED, lr) for objective in args.objectives for lr in args.lr
    ]
    scale = cases.Scale(args.sft_steps, args.rollouts, args.width)
    tuned = runs.made(args.root, tuning, scale, args.jobs) if len(args.lr) > 1 else []
    rates = tables.best_rates(tuned) if tuned else dict.fromkeys(args.objectives, args.lr[0])
    reported = [Case(*pair, seed, rates[pair[1]]) for pair in pairs for seed in args.seeds]
    found = tables.grouped(reported, runs.made(args.root, reported, scale, args.jobs))
    rows = []
    for task in args.tasks:
        of_task = {objective: found[task, objective] for objective in args.objectives}
        baseline = of_task.get(tables.BASELINE, [])
        summaries = {objective: tables.summary(results, baseline) for objective, results in of_task.items()}
        before = fmean(numbers["before"][0] for numbers in summaries.values())
        title = f"{task}: {scale.rollouts} rollouts from SFT models that are right in {before:.1f} % of samples"
        note = f"mean and Student's 95 % interval over seeds {args.seeds}; seconds of one core"
        record.show(title, ["objective", *tables.COLUMNS], [tables.row(*pair) for pair in summaries.items()], note)
        tables.draw(
            args.root / f"{args.name}_{task}.png", task, [result for results in of_task.values() for result in results]
        )
        rows += [result for results in of_task.values() for result in results]
    settings = {
        "lr grid": args.lr,
        "tuning task": cases.TUNING_TASK,
        "tuning seed": cases.TUNING_SEED,
        "seeds": args.seeds,
        **vars(scale),
    }
    print(record.save(args.name, settings | {"tuning": [_short(result) for result in tuned]}, rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(cases.TASKS), default=["arithmetic", "countdown"])
    parser.add_argument("--objectives", nargs="+", choices=list(cases.OBJECTIVES), default=list(cases.FIRST))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(cases.SEEDS))
    parser.add_argument("--lr", nargs="+", type=float, default=list(cases.LEARNING_RATES), help="grid; one: no tuning")
    parser.add_argument("--sft_steps", type=int, default=cases.Scale.sft_steps)
    parser.add_argument("--rollouts", type=int, default=cases.Scale.rollouts)
    parser.add_argument("--width", type=int, default=cases.Scale.width)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--root", type=Path, default=Path("outputs/study"), help="every run is kept here")
    parser.add_argument("--name", default="study", help="of the file in benchmarks/results, and of the figures")
    return parser.parse_args()


def _short(result: dict) -> dict:
    names = ("task", "objective", "lr", "seed")
    return {name: result[name] for name in names} | {"sampled": tables.last(result)["eval/sampled/accuracy"]}


if __name__ == "__main__":
    main()
