"""LMDeploy's own model, attention kernels and graph runner on a CPU, against the torch engine: `python -m` this file.

Triton interprets the kernels, and LMDeploy's graphs run without being captured, but with their fixed buffers and
padded batches. Nothing of LMDeploy is replaced but the device: what asks for CUDA gets the CPU.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

# Read when the kernels are imported.
os.environ |= {"TRITON_INTERPRET": "1", "LMDEPLOY_FAKE_CUDA_GRAPH_CAPTURE": "1", "LMDEPLOY_ENABLE_CHECK_ENV": "0"}

import torch
from tests.lmdeploy.cpu import _Event, _Stream
from tests.tiny import EXPERTS, TinyModel, prompt
from torch.overrides import TorchFunctionMode

from dirl.models import ModelDescription, SDARMoeConfig
from dirl.rollout import LMDeployEngine, TorchEngine
from dirl.rollout.lmdeploy import rank_group
from dirl.rollout.lmdeploy.loop_thread import LoopThread
from dirl.types import DecodingParams, GenerationRequest, Trajectory

HOPPER = SimpleNamespace(major=9, minor=0, multi_processor_count=4, total_memory=80 << 30, name="a small H100")
"""With few processors the kernels split their work into few parts, which are interpreted one after the other."""


def main(block_size: int, tp: int = 1, experts: int = 0) -> float:
    """The largest difference of log-probs; AssertionError if a trace differs."""
    with lmdeploy_interpreted():
        source = WithExperts(block_size) if experts else TinyModel(block_size)
        description = source.describe()
        weights = list(description.family.weights(source.build(description.config)))
        pages = {"kv_blocks": 32, "page_tokens": max(16, block_size), "prefill_tokens": 96}
        engine = LMDeployEngine(3, **pages, sleep=True, dtype="float32", check=False, tp=tp)
        reference = TorchEngine(max_batch_size=3)
        for each, device in ((reference, "cpu"), (engine, "cuda")):
            each.setup(description.config, description.tokenizer, description.spec, device)
        requests = [GenerationRequest(f"p{i}", 0, prompt(2 + 5 * i, i), seed=i) for i in range(3)]
        decoding = DecodingParams(threshold=0.4, max_response_tokens=block_size)
        differences = []
        for version in range(2):  # the engine slept before the second
            for each in (reference, engine):
                each.update_weights(weights, version)
            made = {t.key: t for t in engine.generate(requests, decoding)}
            differences += [difference(made[t.key], t) for t in reference.generate(requests, decoding)]
            engine.sleep()
        engine.close()
    return max(differences)


class WithExperts(TinyModel):
    def describe(self) -> ModelDescription:
        made = super().describe()
        values = made.config.to_dict() | EXPERTS
        del values["model_type"]
        return replace(made, config=SDARMoeConfig(**values))


def difference(made: Trajectory, expected: Trajectory) -> float:
    assert (made.response_ids, made.step_map) == (expected.response_ids, expected.step_map), (made, expected)
    return max(abs(a - b) for a, b in zip(made.behaviour_logprobs, expected.behaviour_logprobs, strict=True))


@contextmanager
def lmdeploy_interpreted() -> Iterator[None]:
    """Within, `LMDeployEngine` runs here, in fp32 too."""
    from lmdeploy.messages import PytorchEngineConfig

    stubs: dict[str, Callable[..., Any]] = {
        "Stream": _Stream,
        "Event": _Event,
        "stream": lambda stream: nullcontext(),
        "current_stream": _Stream,
        "synchronize": lambda *args: None,
        "empty_cache": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 8,
        "set_device": lambda device: None,
        "get_device_properties": lambda *args: HOPPER,
        "get_device_capability": lambda *args: (HOPPER.major, HOPPER.minor),
        "mem_get_info": lambda *args: (1 << 28, HOPPER.total_memory),
        "graph_pool_handle": lambda: (0, 0),
        "is_bf16_supported": lambda *args, **kwargs: True,
    }
    serve = LoopThread._serve

    def serve_here(self: LoopThread) -> None:
        with CpuForCuda():
            serve(self)

    with ExitStack() as stack:
        for name, stub in stubs.items():
            stack.enter_context(patch.object(torch.cuda, name, stub))
        stack.enter_context(patch.object(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, create=True))
        stack.enter_context(patch.object(LoopThread, "_serve", serve_here))
        stack.enter_context(patch.object(rank_group, "BACKEND", "gloo"))
        stack.enter_context(patch.object(PytorchEngineConfig, "__post_init__", lambda self: None))  # it refuses fp32
        _interpretable_kernels(stack)
        yield


class CpuForCuda(TorchFunctionMode):
    """What asks for a CUDA tensor gets one of the CPU."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.to:
            args = tuple("cpu" if _is_cuda(value) else value for value in args)
        return func(*args, **kwargs)


def _is_cuda(value: object) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


def _interpretable_kernels(stack: ExitStack) -> None:
    """The interpreter knows Triton's functions by their own names, not by those that modules gave them."""
    import importlib

    import triton.language as tl
    from triton.runtime.autotuner import Autotuner

    def log2(x: Any) -> Any:
        return tl.full((), math.log2(x), tl.float32) if isinstance(x, float) else tl.log2(x)

    flash, paged, activation = (
        importlib.import_module(f"lmdeploy.pytorch.kernels.cuda.{name}")
        for name in ("flashattention", "pagedattention", "activation")
    )
    for module in (flash, paged):
        stack.enter_context(patch.object(module, "tl_exp2", lambda x: tl.exp2(x)))
        stack.enter_context(patch.object(module, "tl_log2", log2))
    stack.enter_context(patch.object(paged, "is_cuda", lambda: False))
    # Of the settings that the kernels of experts may have it takes the first: none is faster here.
    stack.enter_context(patch.object(Autotuner, "_bench", lambda self, *args, config, **meta: [0.0]))
    stack.enter_context(patch.object(activation, "fast_expf", lambda x: tl.exp(x)))


torch.set_num_threads(1)
if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
if __name__ == "__mp_main__":  # a further rank: it is left as it is when it ends
    shims = ExitStack()
    shims.enter_context(lmdeploy_interpreted())
    shims.enter_context(CpuForCuda())
