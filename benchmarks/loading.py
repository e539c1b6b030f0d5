"""Host memory of loading a model of a billion parameters on two processes, by strategy and by the files' precision.

A process's own memory and the pages of files that it has mapped, at their most while the model is built, less what was
resident before; summed over the processes, as a share of the model's size in memory.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import record
from dirl.data_ranks import data_mesh, tensor_mesh
from dirl.models import PretrainedModel, register_models
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.families.weights import empty_backbone, named_tensors, weight_shapes
from dirl.models.model_files import model_files
from dirl.models.special_tokens import mask_token_id
from dirl.models.tokenizer import new_tokenizer
from dirl.models.weight_writer import write_weights
from dirl.modules.building import Building, build_model
from dirl.strategy import mesh_shape

PROCESSES = 2
STRATEGIES = {"fsdp": ("all", 1), "fsdp_tp": ("all", 2)}
"""Shards and parts of a matrix; `single` and `ddp` build the whole model in each process."""
BILLION = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 16, "vocab_size": 49_152}
BILLION |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
TOY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512}
TOY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
PAUSE_S = 0.005


def write_model(folder: Path, sizes: dict[str, int], dtype: torch.dtype) -> int:
    """Random weights, one at a time; returns the number of parameters."""
    family, tokenizer = Qwen3Family(), new_tokenizer(None)
    register_models()
    ids = {"mask_token_id": mask_token_id(tokenizer, None), "pad_token_id": tokenizer.pad_token_id}
    ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    name = str(dtype).removeprefix("torch.")
    config = family.new_config(block_size=4, tie_word_embeddings=False, dtype=name, **ids, **sizes)
    empty = empty_backbone(family, config, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in model_files(config, tokenizer, dtype=dtype).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for key, value in named_tensors(empty):
            yield key, torch.empty(value.shape, dtype=dtype).uniform_(-0.05, 0.05)

    write_weights(folder, weights(), weight_shapes(family, empty), dtype, "1GB")
    return sum(value.numel() for _, value in named_tensors(empty))


class Resident:
    """The most that this process has resident within the block, above what it had before, in bytes."""

    def __enter__(self) -> "Resident":
        self.before = self.most = _status("RssAnon", "RssFile", "RssShmem")
        self.own = self.own_before = _status("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(PAUSE_S):
            self._look()

    def _look(self) -> None:
        self.most = max(self.most, _status("RssAnon", "RssFile", "RssShmem"))
        self.own = max(self.own, _status("RssAnon"))


def _status(*names: str) -> int:
    """Sum of fields of /proc/self/status, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return 1024 * sum(int(words[1]) for words in lines if words and words[0].rstrip(":") in names)


def build(rank: int, folder: str, strategy: str, results: Any) -> None:
    """One process: what building the model takes there, and what is left of it when it is built."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    sharded = strategy in STRATEGIES
    mesh = mesh_shape(1, PROCESSES, *STRATEGIES[strategy]).mesh("cpu") if sharded else None
    source = PretrainedModel(f"{folder}/model")
    description = source.describe()
    dist.barrier()
    started = time.perf_counter()
    with Resident() as resident:
        meshes = (None if mesh is None else data_mesh(mesh), tensor_mesh(mesh))
        model = build_model(
            source, description, description.spec, Building("auto", None, "none", False), *meshes, False
        )
    seconds, left = time.perf_counter() - started, _status("RssAnon") - resident.own_before
    results.put((resident.most - resident.before, resident.own - resident.own_before, left, seconds))
    dist.barrier()
    del model
    dist.destroy_process_group()


def measure(folder: Path, strategy: str, parameters: int, stored: str) -> dict[str, Any]:
    """Of one strategy, all processes together; weights are fp32 in memory whatever the files have."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    (folder / "store").unlink(missing_ok=True)
    started = [context.Process(target=build, args=(r, str(folder), strategy, results)) for r in range(PROCESSES)]
    for process in started:
        process.start()
    found = [results.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    size = 4 * parameters
    most, own, left = (sum(each[i] for each in found) for i in range(3))
    return {
        "strategy": strategy,
        "files": stored,
        "parameters": parameters,
        "model_gb": size / 1e9,
        "peak_gb": most / 1e9,
        "peak_of_model": most / size,
        "own_peak_of_model": own / size,
        "built_of_model": left / size,
        "seconds": max(each[3] for each in found),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="a toy model, one strategy")
    small = parser.parse_args(arguments).dry_run
    sizes, strategies = (TOY, ["fsdp"]) if small else (BILLION, [*STRATEGIES, "ddp"])
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32,) if small else (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as name:
            folder, stored = Path(name), str(dtype).removeprefix("torch.")
            parameters = write_model(folder / "model", sizes, dtype)
            for strategy in strategies:
                record.keep(rows, measure(folder, strategy, parameters, stored))
    columns = ["strategy", "files", "model GB", "peak GB", "peak / model", "without files", "when built", "seconds"]
    fields = ("strategy", "files", "model_gb", "peak_gb", "peak_of_model", "own_peak_of_model", "built_of_model")
    shown = [[row[field] for field in (*fields, "seconds")] for row in rows]
    note = "both processes together; fp32 in memory; without files: without the pages of files that are mapped"
    record.show("Host memory of loading a model on two processes", columns, shown, note)
    print("written to", record.save("loading", {"sizes": json.dumps(sizes), "processes": PROCESSES}, rows))


if __name__ == "__main__":
    main()
