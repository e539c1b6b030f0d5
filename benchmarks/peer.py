"""The torch engine beside a decoder with a KV cache and one sequence at a time, as published models bring one along.

python -m benchmarks.peer
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import record
from benchmarks.cached_decoder import decode
from benchmarks.engine import make_requests
from benchmarks.shapes import model_config, model_spec, named_shape, random_backbone
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams

Rates = dict[str, float]
PEER, MODULES, ENGINE = "one sequence at a time", "torch engine, forward: modules", "torch engine"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.dry_run:
        options.model, options.batches, options.rounds, options.prompt, options.response = "tiny", [1, 2], 2, 6, 8
    torch.set_num_threads(options.threads)
    rows = []
    for batch in options.batches:
        rounds = compare(options, batch)
        for name in (PEER, MODULES, ENGINE):
            rate = statistics.median(found[name] for found in rounds)
            times = [found[name] / found[PEER] for found in rounds]
            row = {"decoder": name, "batch": 1 if name == PEER else batch, "tokens_per_second": rate}
            rows.append({**row, "times": statistics.median(times), "least": min(times), "most": max(times)})
    columns = list(rows[0])
    title = (
        f"decoding {options.response} tokens after {options.prompt}, block size {options.block_size}, "
        f"{options.tokens_per_step} a denoising step, model {options.model}"
    )
    note = f"times: the first decoder's rate in the same of {options.rounds} rounds, median, least and most"
    record.show(title, [c.replace("_", " ") for c in columns], [[row[c] for c in columns] for row in rows], note)
    settings = {k: v for k, v in vars(options).items() if k != "dry_run"}
    print("written to", record.save("peer", settings, rows))


def compare(options: argparse.Namespace, batch: int) -> list[Rates]:
    """Response tokens per processor second of each decoder, in rounds that let each have its turn."""
    size = options.block_size
    shape = named_shape(options.model)
    spec, config = dataclasses.replace(model_spec(shape, size), stop_token_ids=()), model_config(shape, size)
    steps = max(1, size // options.tokens_per_step)
    decoding = DecodingParams("low_confidence_static", denoising_steps=steps, max_response_tokens=options.response)
    requests = make_requests(spec, batch, options.prompt)
    plain = random_backbone(config).eval()
    plain.set_attn_implementation("sdpa")

    def alone() -> int:
        return len(decode(plain, spec, requests[0], decoding)[0])

    def engine(forward: str) -> Callable[[], int]:
        made = TorchEngine(max_batch_size=batch, forward=forward)
        made.setup(config, None, spec, "cpu")
        made.update_weights(random_backbone(config).named_parameters(), 0)
        return lambda: sum(t.response_length for t in made.generate(requests, decoding))

    decoders = {PEER: alone, MODULES: engine("modules"), ENGINE: engine("auto")}
    rounds = [{name: rate(run) for name, run in decoders.items()} for _ in range(options.rounds + 1)]
    return rounds[1:]  # the first warms up


def rate(run: Callable[[], int]) -> float:
    started = time.process_time()
    tokens = run()
    return tokens / (time.process_time() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deep", help="shape of benchmarks/shapes.py")
    parser.add_argument("--block-size", type=int, default=4)
    parser.add_argument("--tokens-per-step", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128], help="of the engine")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--response", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="toy size")
    return parser


if __name__ == "__main__":
    main()
