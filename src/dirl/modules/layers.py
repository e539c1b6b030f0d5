"""How the decoder layers run: which of them are computed again in the backward pass, and compiled or not.

Both replace a layer's `forward` on the instance, inside of all hooks: FSDP2 gathers a layer once for the forward and
once for the backward pass whether it is recomputed or not, no name of a parameter changes, and the layer is compiled
together with its recomputation. So the order is: recompute, compile, shard.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Checkpointing = Literal["none", "full", "selective"]
LayerForward = Callable[..., Tensor]

COMPILATIONS = 64
"""How often the layers may be compiled in one process, for as many kinds of inputs."""


def check_checkpointing(mode: str) -> None:
    if mode not in get_args(Checkpointing):
        raise ValueError(
            f"activation_checkpointing={mode!r}: use none (keep all activations), full (recompute every layer) or "
            "selective (recompute every second one)"
        )


def recompute_layers(layers: Iterable[nn.Module], mode: Checkpointing) -> None:
    """Keep the input of a layer alone, of every layer (`full`) or of every second one (`selective`).

    Every matrix product of a layer costs the same FLOPs for each byte of its result that is not kept, so none is
    worth more to keep than another, and whole layers are what FlexAttention's compiled kernel, which no dispatch
    mode sees into, allows. The last of an even number of layers is kept: it is used first.
    """
    if mode == "none":
        return
    for index, layer in enumerate(layers):
        if mode == "full" or index % 2 == 0:
            layer.forward = _recomputed(layer.forward)


def compile_layers(layers: Iterable[nn.Module], backend: str | Callable = "inductor") -> None:
    """One compiled function serves all layers: they share their code, and their weights are its arguments."""
    # With and without gradient, of policy and reference, short and long rows: dynamo's own limit of 8 would be met, and
    # the layers after it run eagerly with no more than a warning.
    kinds = torch._dynamo.config.patch(recompile_limit=COMPILATIONS)
    for layer in layers:
        layer.forward = kinds(torch.compile(layer.forward, backend=backend))


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """The parameters alone: `Module.to` would round the frequencies of the rotary embedding as well."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _recomputed(forward: LayerForward) -> LayerForward:
    def run(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(hidden_states, **kwargs)
        # No layer draws random numbers: there is no state to keep.
        return checkpoint(forward, hidden_states, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
