"""The experts of a Mixture-of-Experts layer: all tokens of all experts in one product per projection.

Every (token, chosen expert) pair is a row; rows are sorted by expert, so that each expert owns a stretch of them.
No shape depends on the router's choice and, with torch's grouped product, the host never waits for the device.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dirl.autocast import of_compute_type

Experts = Literal["auto", "grouped", "loop"]
"""How the stretches meet their experts: torch's grouped product, one product for each expert, or what is possible."""

Product = Callable[[Float[Tensor, "S K"], Float[Tensor, "E N K"], Int32[Tensor, " E"]], Float[Tensor, "S N"]]
"""Rows [S, K] sorted by expert, matrices [E, N, K], end of each expert's stretch [E] int32 -> [S, N]."""


def choose_experts(config: PreTrainedConfig, experts: Experts, model: str, has_experts: bool) -> None:
    """Write the choice into the config of `model`; every model that is built from it then computes alike."""
    if experts not in get_args(Experts):
        raise ValueError(f"experts={experts!r}: use one of {', '.join(get_args(Experts))}")
    if has_experts:
        config._experts_implementation = experts_implementation(experts)
    elif experts != "auto":
        raise ValueError(f"experts={experts!r}: model {model!r} has no experts; leave the option out")


def experts_implementation(experts: Experts = "auto") -> str:
    """The name under which transformers finds the choice; registers it, harmless when repeated."""
    name = f"dirl_{experts}"
    products: dict[Experts, Product] = {"auto": _any_product, "grouped": _grouped_or_error, "loop": looped_product}
    ALL_EXPERTS_FUNCTIONS.register(name, partial(_experts_forward, products[experts]))
    return name


class _ExpertsLayer(Protocol):
    """What is asked of the module of transformers that holds the experts of a layer."""

    gate_up_proj: Tensor
    down_proj: Tensor
    act_fn: Callable[[Tensor], Tensor]


def _experts_forward(
    product: Product, module: _ExpertsLayer, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What transformers calls for the experts of a layer, by its experts interface."""
    matrices = module.gate_up_proj, module.down_proj
    return weighted_experts(hidden_states, top_k_index, top_k_weights, *matrices, module.act_fn, product)


def weighted_experts(
    hidden: Float[Tensor, "T D"],
    index: Int[Tensor, "T k"],
    weights: Float[Tensor, "T k"],
    gate_up: Float[Tensor, "E two_I D"],
    down: Float[Tensor, "E D I"],
    activation: Callable[[Tensor], Tensor],
    product: Product,
) -> Float[Tensor, "T D"]:
    """sum over the experts e of a token of w_e down_e (activation(gate_e x) * up_e x).

    The weight is applied before `down`, which is linear: there it is the narrowest, and its gradient needs no result
    of `down` to be kept.

    Args:
        hidden: [T, D].
        index: [T, k] experts of each token.
        weights: [T, k] of these experts.
        gate_up: [E, 2I, D].
        down: [E, D, I].
    """
    rows_in, gate_up, down = of_compute_type(hidden, gate_up, down)
    choices = index.shape[1]
    expert, order = index.flatten().sort(stable=True)  # rows of an expert in the order of the tokens, on every run
    numbers = torch.arange(len(order), device=order.device, dtype=torch.int32)
    order, place = order.int(), torch.empty_like(numbers).scatter_(0, order, numbers)
    every = torch.arange(len(gate_up), device=expert.device)
    ends = torch.searchsorted(expert, every, right=True, out_int32=True)
    rows = _Spread.apply(rows_in, order, place, choices)
    gate, up = product(rows, gate_up, ends).chunk(2, dim=-1)
    scale = weights.flatten().index_select(0, order)[:, None]
    inner = activation(gate) * up * scale.to(gate.dtype)
    return _Collect.apply(product(inner, down, ends), order, place, choices, hidden.dtype)


def grouped_product(
    rows: Float[Tensor, "S K"], matrices: Float[Tensor, "E N K"], ends: Int32[Tensor, " E"]
) -> Float[Tensor, "S N"]:
    """All experts in one kernel; see `grouped_obstacle` for when it cannot be had."""
    if rows.is_cuda and torch.cuda.get_device_capability(rows.device)[0] >= 10:
        matrices = _ZeroIdleGradient.apply(matrices, ends)
    return torch._grouped_mm(rows, matrices.transpose(1, 2), offs=ends)


def looped_product(
    rows: Float[Tensor, "S K"], matrices: Float[Tensor, "E N K"], ends: Int32[Tensor, " E"]
) -> Float[Tensor, "S N"]:
    """One product for each expert, in any dtype and of any size; the host waits for the sizes of the stretches."""
    return _products_one_by_one(rows, matrices, ends)


def grouped_obstacle(rows: Float[Tensor, "S K"], matrices: Float[Tensor, "E N K"]) -> str | None:
    """Why torch's grouped product cannot have these operands without a wait of the host; None: it can.

    On CUDA it is one kernel for bf16 alone, and torch.compile knows no other dtype of it on any device. It reads
    lines of 16 bytes.
    """
    device, dtype = rows.device.type, rows.dtype
    if dtype != torch.bfloat16 and (device != "cpu" or torch.compiler.is_compiling()):
        return f"needs bfloat16 on {device}{', compiled' if torch.compiler.is_compiling() else ''}, not {dtype}"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"does not know {dtype}"
    if device == "cpu" and not _CPU_TAKES_ANY_ADDRESS:
        return f"on a CPU needs torch 2.11 or newer, this is {torch.__version__}"
    line = 16 // rows.element_size()
    odd = [size for size in matrices.shape[1:] if size % line]
    return f"needs sizes that are multiples of {line} in {dtype}, not {odd}" if odd else None


# Before, the kernel refused memory that does not begin at a multiple of 16 bytes, as files mapped into memory do.
_CPU_TAKES_ANY_ADDRESS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)


def _any_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    if grouped_obstacle(rows, matrices) is None:
        return grouped_product(rows, matrices, ends)
    return looped_product(rows, matrices, ends)


def _grouped_or_error(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    obstacle = grouped_obstacle(rows, matrices)
    if obstacle is not None:
        raise ValueError(
            f"experts='grouped': torch's grouped product {obstacle}; set the model source's experts=auto or loop, or "
            "trainer.precision=bf16-mixed"
        )
    return grouped_product(rows, matrices, ends)


# Outside of compiled graphs: sizes that the router decides would compile anew at every step.
@torch.compiler.disable
def _products_one_by_one(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    stops = ends.tolist()
    sizes = [stop - start for start, stop in zip([0, *stops], stops, strict=False)]
    return torch.cat([part @ matrix.T for part, matrix in zip(rows.split(sizes), matrices.unbind(), strict=True)])


def _spread(hidden: Tensor, order: Tensor, choices: int) -> Tensor:
    """[T, D] -> [T k, D]: each token once for each of its experts, sorted by expert."""
    return hidden.index_select(0, order // choices)


def _collect(rows: Tensor, place: Tensor, choices: int, dtype: torch.dtype) -> Tensor:
    """[T k, D] -> [T, D]: the sum over the experts of each token, in one order and rounded once."""
    return rows.index_select(0, place).unflatten(0, (-1, choices)).sum(1, dtype=dtype)


class _Spread(torch.autograd.Function):
    """`_spread`, whose adjoint is `_collect`: autograd's own would add to a token in any order, rounding each time."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, order: Tensor, place: Tensor, choices: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.choices = choices
        return _spread(hidden, order, choices)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        return _collect(gradient, place, ctx.choices, gradient.dtype), None, None, None


class _Collect(torch.autograd.Function):
    """`_collect`, whose adjoint is `_spread`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, order: Tensor, place: Tensor, choices: int, dtype: torch.dtype
    ) -> Tensor:
        # Not by save_for_backward: a recomputed layer is then done when the operands of the product before are there.
        ctx.order, ctx.choices, ctx.dtype = order, choices, rows.dtype
        return _collect(rows, place, choices, dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _spread(gradient.to(ctx.dtype), ctx.order, ctx.choices), None, None, None, None


class _ZeroIdleGradient(torch.autograd.Function):
    """The matrices, whose gradient is 0 for an expert without tokens: Blackwell's kernel leaves it unwritten."""

    @staticmethod
    def forward(ctx: FunctionCtx, matrices: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(ends)
        return matrices.view_as(matrices)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (ends,) = ctx.saved_tensors
        idle = ends.diff(prepend=ends.new_zeros(1)) == 0
        return gradient.masked_fill(idle[:, None, None], 0), None
