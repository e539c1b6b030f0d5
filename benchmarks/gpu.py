"""What training costs on one GPU, part by part; each part ends within its time limit.

python -m benchmarks.gpu train --models sdar-8b --tokens 16384
python -m benchmarks.gpu all --dry-run
"""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from benchmarks import gpu_attention, gpu_layouts, gpu_training, record
from benchmarks.device_clock import Deadline, copy_rate, device_name, matrix_rate, pick_device
from benchmarks.gpu_attention import AttentionPart
from benchmarks.gpu_layouts import LayoutsPart
from benchmarks.gpu_training import TrainingPart

PARTS = ("rates", "attention", "layouts", "train")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # rows of many lengths: little is wasted
    device = pick_device(options.dry_run)
    for name in PARTS if options.part == "all" else (options.part,):
        run_part(name, options, device)


def run_part(name: str, options: argparse.Namespace, device: str) -> None:
    """Measure, write JSON, print the table last."""
    deadline = Deadline(options.time_limit)
    if name == "rates":
        rows = [_rates(device)]
        settings: dict[str, Any] = {}
        path = record.save("gpu_rates", settings, rows)
        record.show(device_name(device), list(rows[0]), [list(rows[0].values())])
    else:
        part, module = _part(name, options), _MODULES[name]
        rows = module.run(part, device, deadline)
        path = record.save(_file_name(name, part), dataclasses.asdict(part), rows)
        module.show(rows, deadline.note())
    print("written to", path, flush=True)


_MODULES = {"attention": gpu_attention, "layouts": gpu_layouts, "train": gpu_training}


def _part(name: str, options: argparse.Namespace) -> AttentionPart | LayoutsPart | TrainingPart:
    """The part as asked for; options that were not given keep its defaults."""
    kind = {"attention": AttentionPart, "layouts": LayoutsPart, "train": TrainingPart}[name]
    part = kind.toy() if options.dry_run else kind()
    asked = {
        "models": options.models,
        "model": options.models and options.models[0],
        "tokens": options.tokens,
        "kinds": options.kinds,
        "modes": options.recompute,
        "recompute": options.recompute and options.recompute[0],
        "compiled": options.compiled,
        "layers": options.layers,
        "optimizer": options.optimizer,
    }
    names = {field.name for field in dataclasses.fields(part)}
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in asked.items() if v is not None and key in names}
    return dataclasses.replace(part, **given)


def _file_name(name: str, part: AttentionPart | LayoutsPart | TrainingPart) -> str:
    """With the models, so that runs of one model each leave their results beside each other."""
    models = {"train": getattr(part, "models", ()), "layouts": (getattr(part, "model", ""),)}.get(name, ())
    return "_".join(("gpu", name, *models))


def _rates(device: str) -> dict[str, float]:
    toy = device == "cpu"
    return {
        "bf16 TFLOP/s": matrix_rate(device, 64 if toy else 8192) / 1e12,
        "copy GB/s": copy_rate(device, 2**20 if toy else 2**31) / 1e9,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--models", nargs="+", help="shapes of benchmarks/shapes.py (layouts: the first)")
    parser.add_argument("--tokens", nargs="+", type=int, help="of a packed row")
    parser.add_argument("--kinds", nargs="+", choices=("policy", "sft"))
    parser.add_argument("--recompute", nargs="+", choices=gpu_training.MODES, help="modes to try (layouts: the first)")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, help="torch.compile of the layers")
    parser.add_argument("--layers", type=int, help="of the models of train, in place of their own number")
    parser.add_argument("--optimizer", action="store_true", default=None, help="train: fp32 weights, and AdamW's step")
    parser.add_argument("--time-limit", type=float, default=540, help="seconds after which a part starts nothing new")
    parser.add_argument("--dry-run", action="store_true", help="toy size on CPU")
    return parser


if __name__ == "__main__":
    main()
