"""LMDeploy's real engine on a CPU: CUDA's streams and events are stubs, and the model a toy with a paged memory.

Scheduler, engine loop, request queue, paging, input making, strategies and model-agent loop are LMDeploy's own.
The toy keeps the *token ids* of every page instead of keys and values, and recomputes block-causal attention over
what the page table of a sequence says: with a wrong page, position or order its logits are wrong.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dirl.attention import ATTENTION_NAME, visible
from dirl.batches import Layout


@contextmanager
def lmdeploy_on_cpu(block_size: int) -> Iterator[None]:
    """Within, `LMDeployEngine` runs here. `block_size`: of the model's diffusion blocks."""
    from lmdeploy.pytorch.engine.model_agent import agent

    base = "lmdeploy.pytorch.engine.model_agent.agent"
    with ExitStack() as stack:
        for name, stub in {
            "Stream": _Stream,
            "Event": _Event,
            "stream": lambda stream: nullcontext(),
            "current_stream": _Stream,
            "synchronize": lambda *args: None,
            "empty_cache": lambda: None,
            "set_device": lambda device: None,
        }.items():
            stack.enter_context(patch.object(torch.cuda, name, stub))
        stack.enter_context(patch.object(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, create=True))
        stack.enter_context(patch("lmdeploy.pytorch.config.is_bf16_supported", lambda device_type="cuda": True))
        stack.enter_context(patch(f"{base}._try_to_cuda", _to_device))
        methods = {
            "build_model": lambda self: setattr(self, "patched_model", Toy(self.model_path, block_size)),
            "build_cache_plans": _build_cache_plans,
            "build_graph_runner": lambda self: None,
            "build_cache_engine": _build_cache_engine,
            "get_free_mem": lambda self: 1 << 30,
            "warmup": lambda self: None,
            "_forward_impl": _forward,
        }
        for name, method in methods.items():
            stack.enter_context(patch.object(agent.BaseModelAgent, name, method))
        yield


def _to_device(value: Any, non_blocking: bool = False) -> Any:
    return value.to_device("cpu") if hasattr(value, "to_device") else value


class _Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_event(self, event: "_Event") -> None: ...

    def query(self) -> bool:
        return True


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def wait(self, *args: Any) -> None: ...

    def query(self) -> bool:
        return True


class Toy:
    """Stands where LMDeploy's graph runner does, around transformers' model in fp32."""

    def __init__(self, folder: str, block_size: int) -> None:
        from transformers import AutoConfig

        self.block_size = block_size
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(folder)
            self.model = AutoModelForCausalLM.from_config(
                config, attn_implementation=ATTENTION_NAME, dtype=torch.float32
            ).eval()
        self.model.load_weights = self.load_weights
        self.pages: Tensor | None = None

    def get_model(self) -> nn.Module:
        return self.model

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        own = dict(self.model.named_parameters())
        for name, value in weights:
            if name in own:
                own[name].copy_(value)
            else:
                _expert(own, name).copy_(value)

    def get_logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)

    def get_input_processor(self) -> None:
        return None

    def get_prefill_warmup_token_sizes(self) -> list[int]:
        return []

    def reset(self) -> None: ...

    def hidden(self, inputs: Any) -> Tensor:
        """[1, T, D] of the tokens of all sequences, one sequence after the other."""
        rows, at = [], 0
        flat = inputs.input_ids.flatten()
        for length, history, table in zip(
            inputs.seq_length.tolist(), inputs.history_lengths.tolist(), inputs.block_offsets, strict=True
        ):
            new = flat[at : at + length]
            at += length
            positions = torch.arange(history + length)
            page, slot = table[positions // self.pages.shape[1]].long(), positions % self.pages.shape[1]
            self.pages[page[history:], slot[history:]] = new
            context = self.pages[page, slot]
            rows.append(self._block_causal(context)[-length:])
        return torch.cat(rows)[None]

    def _block_causal(self, ids: Tensor) -> Tensor:
        positions = torch.arange(len(ids))
        zero = torch.zeros_like(positions)
        layout = Layout(zero, zero, positions // self.block_size, zero)
        mask = visible(layout[:, None], layout[None, :])[None, None]
        out = self.model.model(
            input_ids=ids[None].long(), position_ids=positions[None], attention_mask=mask, use_cache=False
        )
        return out.last_hidden_state[0]


def _expert(own: dict[str, nn.Parameter], name: str) -> Tensor:
    """What checkpoints call `...experts.3.up_proj.weight`, of the experts that transformers keeps together."""
    owner, index, part, _ = name.rsplit(".", 3)
    if part == "down_proj":
        return own[f"{owner}.down_proj"][int(index)]
    gate, up = own[f"{owner}.gate_up_proj"][int(index)].chunk(2)
    return gate if part == "gate_proj" else up


def _build_cache_plans(self: Any, cache_config: Any, spec_cache_config: Any = None) -> tuple[int, int, int]:
    self._cache_plan_block_nbytes = (1024, 0)
    return 1024, 0, 0


def _build_cache_engine(self: Any) -> None:
    config = self.cache_config
    self.patched_model.pages = torch.full((config.num_gpu_blocks, config.block_size), -1, dtype=torch.long)
    self.cache_engine = self.state_cache_engine = None


def _forward(self: Any, inputs: Any, cache_inputs: Any = None) -> dict[str, Any]:
    hidden = self.patched_model.hidden(inputs)
    return {"hidden_states": hidden, "seq_length": inputs.seq_length, "model_metas": None}
