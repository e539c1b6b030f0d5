"""Own code beside the library that could do it: the wire, workers with limits, experts, fingerprints.

`pip install msgspec pebble` first; they are no dependencies.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as Late
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pebble
import torch
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase, Qwen3MoeConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from benchmarks import record
from benchmarks.quick_reward import Quick
from dirl.checked_json import from_json, to_json
from dirl.models import NewModel
from dirl.models.experts import experts_implementation
from dirl.rewards import RewardSample
from dirl.rewards.feed import Feed
from dirl.rewards.pool import WorkerPool
from dirl.rollout.remote.wire import Line
from dirl.types import Trajectory

Row = dict[str, Any]


def fastest(work: Callable[[], object], times: int = 5) -> float:
    """Seconds."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


# --------------------------------------------------------------------------------------------------- the wire


def trajectory(tokens: int) -> Trajectory:
    steps = tuple(1 + i % 4 for i in range(tokens))
    logprobs = tuple(-0.123456789 * (1 + i % 7) for i in range(tokens))
    return Trajectory("q", 0, tuple(range(256)), tuple(range(tokens)), tokens, steps, logprobs, "length", 3)


def wire(tokens: int) -> list[Row]:
    """A line with a trajectory, to JSON and back with every field checked; and what passes that must not."""
    line = Line(7, "id", trajectory(tokens))
    ways: dict[str, tuple[Callable[[], str | bytes], Callable[[str | bytes], Line]]] = {
        "pydantic (taken)": (lambda: to_json(line), lambda text: from_json(Line, text)),
        "msgspec": (lambda: msgspec.json.encode(line), lambda text: msgspec.json.decode(text, type=Line)),
    }
    good = json.loads(to_json(line))
    bad = {
        "an unknown field": json.dumps({**good, "surplus": 1}),
        "a missing field": json.dumps({k: v for k, v in good.items() if k != "heartbeat"}),
        "a text for a number": json.dumps({**good, "heartbeat": "7"}),
        "true for a number": json.dumps({**good, "heartbeat": True}),
        "NaN": json.dumps(good).replace("-0.123456789", "NaN", 1),
        "1e999": json.dumps(good).replace("-0.123456789", "1e999", 1),
    }
    rows = []
    for name, (write, read) in ways.items():
        text = write()
        assert read(text) == line
        taken = [what for what, broken in bad.items() if _takes(read, broken)]
        times = {"write_ms": 1e3 * fastest(write), "read_ms": 1e3 * fastest(lambda r=read, t=text: r(t))}
        rows.append({"way": name, **times, "takes": ", ".join(taken) or "nothing"})
    return rows


def _takes(read: Callable[[str | bytes], Line], text: str) -> bool:
    try:
        read(text)
    except (ValueError, TypeError, msgspec.MsgspecError):
        return False
    return True


# ------------------------------------------------------------------------------------------------------ workers


def samples(count: int, response: str = "four") -> list[RewardSample]:
    return [RewardSample("q", i, "?", response, "4", 4, 4, 8, 4, {}) for i in range(count)]


def workers(count: int, limit_s: float = 1.0) -> list[Row]:
    """Quick rewards through two processes; start, samples a second, and how late a hanging one is ended."""
    rows = []
    pool = WorkerPool([Quick()], 2, limit_s)
    start = fastest(lambda: list(pool.run(Feed(samples(1)).end())), 1)
    many = fastest(lambda: list(pool.run(Feed(samples(count)).end())), 3)
    late = fastest(lambda: list(pool.run(Feed(samples(1, "hang")).end())), 1) - limit_s
    pool.close()
    rows.append({"way": "own", "start_s": start, "samples_per_s": count / many, "late_s": late})
    reward = Quick()
    with pebble.ProcessPool(max_workers=2) as other:
        start = fastest(lambda: other.schedule(reward, args=samples(1), timeout=limit_s).result(), 1)
        all_of_them = samples(count)

        def run() -> None:
            for future in [other.schedule(reward, args=[sample], timeout=limit_s) for sample in all_of_them]:
                future.result()

        many = fastest(run, 3)
        started = time.perf_counter()
        try:
            other.schedule(reward, args=samples(1, "hang"), timeout=limit_s).result()
        except Late:
            late = time.perf_counter() - started - limit_s
    rows.append({"way": "pebble", "start_s": start, "samples_per_s": count / many, "late_s": late})
    return rows


# ------------------------------------------------------------------------------------------------------ experts


def experts(tokens: int) -> list[Row]:
    """Forward and backward of one layer's experts on this CPU in fp32.

    transformers' `batched_mm` copies a matrix for each row: 13 GB here, so it is left out.
    """
    config = Qwen3MoeConfig(hidden_size=512, moe_intermediate_size=192, num_experts=32, num_experts_per_tok=8)
    generator = torch.Generator().manual_seed(0)
    layer = Qwen3MoeExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    hidden = torch.randn(tokens, 512, generator=generator, requires_grad=True)
    weights, index = torch.rand(tokens, 32, generator=generator).softmax(1).topk(8)
    rows = []
    for name in ("eager", "grouped_mm", experts_implementation("auto")):
        forward = type(layer).forward.__wrapped__ if name == "eager" else ALL_EXPERTS_FUNCTIONS[name]

        def run(forward: Callable[..., torch.Tensor] = forward) -> None:
            forward(layer, hidden, index, weights).sum().backward()

        try:
            rows.append({"way": name, "seconds": fastest(run, 3)})
        except (RuntimeError, MemoryError) as error:
            rows.append({"way": name, "seconds": str(error).splitlines()[0][:60]})
    return rows


# -------------------------------------------------------------------------------------------------- fingerprints


def fingerprints() -> list[Row]:
    """Of a tokenizer, before and after it has been used: equal names must mean equal tokens, in any process."""

    def saved(tokenizer: PreTrainedTokenizerBase) -> str:
        """What it would write, as dirl did before."""
        with TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    tokenizer = NewModel().describe().tokenizer
    rows = []
    for name, work in (("files", saved), ("datasets", Hasher.hash)):
        before, seconds = work(tokenizer), fastest(lambda work=work: work(tokenizer), 3)
        tokenizer("some text", padding=True, truncation=True, max_length=4)
        rows.append({"way": name, "ms": 1e3 * seconds, "stays": work(tokenizer) == before})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libraries", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="small sizes")
    small = parser.parse_args(arguments).dry_run
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parts = {
        "a trajectory as JSON": wire(64 if small else 2048),
        "rewards in processes": workers(64 if small else 2000),
        "experts": experts(64 if small else 2048),
        "fingerprint of a tokenizer": fingerprints(),
    }
    for title, rows in parts.items():
        record.show(title, [name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])
    rows = [{"part": title, **row} for title, found in parts.items() for row in found]
    print("written to", record.save("libraries", {"small": small}, rows))


if __name__ == "__main__":
    main()
