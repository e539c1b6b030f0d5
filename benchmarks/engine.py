"""The torch engine: response tokens per second by batch size, beside the plainest decoder.

python -m benchmarks.engine
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.fresh_process import cost_columns, in_fresh_process, measured
from benchmarks.naive_decoder import decode
from benchmarks.shapes import model_config, model_spec, named_shape, random_backbone
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

NAIVE_REQUESTS = 2
GROUP = 8


def make_requests(spec: ModelSpec, count: int, prompt_tokens: int, seed: int = 0) -> list[GenerationRequest]:
    """Groups of 8 equal prompts, one seed a request."""
    rng = np.random.default_rng(seed)
    prompts = [tuple(rng.integers(0, spec.vocab_size - 2, prompt_tokens).tolist()) for _ in range(-(-count // GROUP))]
    return [GenerationRequest(str(i // GROUP), i % GROUP, prompts[i // GROUP], seed=1000 + i) for i in range(count)]


def measure(shape_name: str, block_size: int, batch: int | None, prompt: int, response: int) -> dict[str, Any]:
    """Decode `batch` sequences at a time, two tokens per denoising step; None: the naive decoder."""
    shape = named_shape(shape_name)
    spec, config = model_spec(shape, block_size), model_config(shape, block_size)
    spec = dataclasses.replace(spec, stop_token_ids=())  # random weights stop anywhere: to the limit instead
    backbone = random_backbone(config).eval()
    steps = max(1, block_size // 2)
    decoding = DecodingParams("low_confidence_static", denoising_steps=steps, max_response_tokens=response)
    requests = make_requests(spec, batch or NAIVE_REQUESTS, prompt)
    engine = TorchEngine(max_batch_size=batch or 1)
    engine.setup(config, None, spec, "cpu")
    engine.update_weights(backbone.named_parameters(), 0)

    def rollout() -> list[Trajectory]:
        if batch is None:
            return [decode(backbone, spec, request, decoding) for request in requests]
        return list(engine.generate(requests, decoding))

    found, cost = measured(rollout)
    tokens = sum(t.response_length for t in found)
    return {
        "decoder": "naive" if batch is None else "torch engine",
        "block_size": block_size,
        "batch": batch or 1,
        "tokens": tokens,
        "denoising_steps": sum(t.denoising_steps(block_size) for t in found),
        **cost_columns(cost),
        "tokens_per_second": tokens / cost.seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    batches, sizes = [None, 1, 4, 16, 64], [4, 16]
    if options.dry_run:
        options.model, options.prompt, options.response, batches, sizes = "tiny", 6, 8, [None, 1, 2], [4]
    rows = []
    for size in sizes:
        found = [
            in_fresh_process(
                measure, options.model, size, batch, options.prompt, options.response, threads=options.threads
            )
            for batch in batches
        ]
        rows += [{**row, "speedup": row["tokens_per_second"] / found[0]["tokens_per_second"]} for row in found]
    names = ("decoder", "block_size", "batch", "tokens", "denoising_steps", "seconds", "tokens_per_second", "speedup")
    title = f"decoding {options.response} tokens after {options.prompt}, two a denoising step, model {options.model}"
    record.show(title, [n.replace("_", " ") for n in names], [[row[n] for n in names] for row in rows])
    settings = {k: v for k, v in vars(options).items() if k != "dry_run"}
    print("written to", record.save("engine", settings, rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", help="shape of benchmarks/shapes.py")
    parser.add_argument("--prompt", type=int, default=150, help="tokens")
    parser.add_argument("--response", type=int, default=256, help="tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="toy size")
    return parser


if __name__ == "__main__":
    main()
