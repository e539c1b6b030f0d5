"""python -m benchmarks.adapt [--seeds ...] [--steps N] [--lr X]: runs what is missing, prints a table, saves it."""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import record
from benchmarks.adapt import autoregressive, runs, tables
from benchmarks.adapt.cases import ARMS, BLOCK_SIZE, SEEDS, Scale, held_out
from dirl.models.tokenizer import new_tokenizer
from dirl.tasks import Countdown


def main() -> None:
    args = parsed()
    os.nice(args.nice)
    scale = Scale(args.ar_steps, args.steps, args.batch, args.lr)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # of the processes that make the runs
    pairs = [(arm, seed) for seed in args.seeds for arm in ARMS]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        learned = list(pool.map(partial(autoregressive.made, args.root, scale), args.seeds))
        starts = list(product((True, False), args.seeds))
        list(pool.map(partial(runs.at_start, args.root, scale), *zip(*starts, strict=True)))
        results = list(pool.map(partial(runs.made, args.root, scale), *zip(*pairs, strict=True)))
    arms = {arm.name: [result for result in results if result["arm"] == arm.name] for arm in ARMS}
    per_step, own = tokens_per_step(scale), fmean(likelihood_per_token(told) for told in learned)
    baseline = {run["seed"]: run["curve"][-1]["nelbo"] for run in arms[ARMS[-1].name]}
    rows = {name: tables.row(found, baseline, per_step) for name, found in arms.items()}
    record.show(
        f"NELBO per token at blocks of {BLOCK_SIZE}, nats, of {scale.steps} steps of {scale.batch} conversations",
        ["arm", *tables.COLUMNS],
        [[name, *(found[column] for column in tables.COLUMNS)] for name, found in rows.items()],
        f"mean and Student's 95 % interval over seeds {args.seeds}; {per_step:,.0f} training tokens a step; the "
        f"autoregressive models: -log p {own:.4f} per token after {fmean(t['tokens'] for t in learned):,.0f} tokens",
    )
    path = tables.draw(args.root / "adapting.png", arms, per_step, own)
    settings = {**vars(scale), "seeds": args.seeds, "block_size": BLOCK_SIZE, "tokens_per_step": per_step}
    print(path, record.save("adapt", settings | {"autoregressive": learned}, results))


def tokens_per_step(scale: Scale) -> float:
    """Of conversations, prompts included, each token once."""
    tokenizer = new_tokenizer(Countdown.characters())
    rows = Countdown(solutions=500).conversations("train")
    return scale.batch * fmean(len(autoregressive.encoded(tokenizer, row).input_ids) for row in rows)


def likelihood_per_token(told: dict[str, Any]) -> float:
    """Over as many tokens as the bound is: those that fill up last blocks are certain."""
    tokenizer = new_tokenizer(Countdown.characters())
    fill = sum(-len(autoregressive.encoded(tokenizer, row).input_ids) % BLOCK_SIZE for row in held_out(told["seed"]))
    return told["response_nll"] / (told["response_tokens"] + fill)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapt", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--ar_steps", type=int, default=Scale.ar_steps, help="of next-token training")
    parser.add_argument("--steps", type=int, default=Scale.steps, help="of SFT")
    parser.add_argument("--batch", type=int, default=Scale.batch, help="conversations of a step")
    parser.add_argument("--lr", type=float, default=Scale.lr)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--nice", type=int, default=10, help="of all its processes")
    parser.add_argument("--root", type=Path, default=Path("outputs/adapt"), help="every run is kept here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
