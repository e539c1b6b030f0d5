"""The value model of a run: where its backbone comes from, its loss, and what it explains of the returns."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from dirl.advantages.gae import GAE
from dirl.losses.value import clipped_squared_error, explained_variance
from dirl.models import ModelDescription, ModelSource
from dirl.models.families.weights import empty_backbone
from dirl.models.value import ScalarHead, with_scalar_head
from dirl.modules.optimization import OptimizerConfig
from dirl.objectives import Objective


@dataclass(frozen=True)
class ValueConfig:
    """A model of one number a token: the outcome that is to be expected of the trajectory, at the token's view.

    It is the same kind of model as the policy, with a head of one number, zero to begin with. Its optimizer is its own,
    and it learns in every optimizer step, also while a warm-up holds the policy back.

    Args:
        source: of its backbone, which has to have the policy's tokenizer and block size; None: the one that training
            starts from. Of a model with a value head the head is not taken over.
        optimizer: AdamW and its schedule; TraceRL's learning rate by default.
        shared: the head reads the policy's last hidden states, and there is no second backbone.
        shared_coef: weight of the value's loss in the gradient of a shared backbone; 0: the head alone learns from it.
    """

    source: ModelSource | None = None
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6)  # noqa: RUF009 - frozen
    shared: bool = False
    shared_coef: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.shared_coef < float("inf"):
            raise ValueError(f"model.value.shared_coef={self.shared_coef!r}: use a finite number that is not negative")
        if self.shared and self.source is not None:
            raise ValueError(
                "model.value.shared=true reads the policy's backbone, and model.value.source names another: use "
                "shared=false, or leave out the source"
            )


def check_needed(value: ValueConfig | None, objective: Objective) -> None:
    """Raise ValueError unless there is a value model just where the objective learns from one."""
    name = type(objective).__name__
    if objective.needs_values and value is None:
        raise ValueError(
            f"objective.value=true ({name}) learns from a value model, and model.value=null gives none: set "
            "model.init_args.value, e.g. {optimizer: {lr: 5e-6}}, or objective.value=false"
        )
    if value is not None and not objective.needs_values:
        raise ValueError(
            f"model.value is given, and the objective ({name}) learns from no values: use an objective that does, e.g. "
            "dirl.objectives.TraceRL with objective.value=true, or set model.init_args.value=null"
        )
    if objective.needs_values and objective.subset.view_fraction < 1:
        raise ValueError(
            f"objective.value=true passes credit from step to step, and objective.view_fraction="
            f"{objective.subset.view_fraction:g} leaves steps out: use view_fraction=1, or trajectory_fraction"
        )
    if objective.needs_values and objective.likelihood == "trajectory":
        raise ValueError(
            "objective.value=true knows the worth of tokens, and objective.likelihood=trajectory adds events that are "
            "no tokens: use likelihood=tokens"
        )


def check_alike(value: ModelDescription, policy: ModelDescription) -> None:
    """Raise ValueError unless both models read the same tokens in the same blocks."""
    if value.spec != policy.spec:
        what = f"({value.spec}) differs from the policy's ({policy.spec})"
    elif value.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        what = "has the policy's sizes, and other tokens in its tokenizer"
    else:
        return
    raise ValueError(
        f"the spec of model.value.source {what}, model.source: both score the same tokens in the same blocks; use a "
        "source of the policy's tokenizer and block size, or leave it out"
    )


def shared_head(hidden_size: int, dtype: torch.dtype, mesh: DeviceMesh | None) -> ScalarHead:
    """A head for the policy's hidden states; under a mesh sharded too, so that its gradient is reduced."""
    head = ScalarHead(hidden_size, dtype)
    if mesh is not None:
        fully_shard(head, mesh=mesh)
    return head


def expected_shapes(value: ValueConfig, description: ModelDescription, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes of its weights in a checkpoint, by name, without building it."""
    size = description.config.hidden_size
    if value.shared:
        return {f"{prefix}weight": (1, size)}
    family = description.family
    backbone = with_scalar_head(empty_backbone(family, description.config, torch.float32), family.parts, torch.float32)
    return {f"{prefix}backbone.{name}": tuple(value.shape) for name, value in backbone.state_dict().items()}


def partly(hidden: Float[Tensor, "N D"], share: float) -> Float[Tensor, "N D"]:
    """The same numbers, with a gradient that reaches the backbone `share` times as large."""
    return hidden.detach() if share == 0 else hidden.detach() + share * (hidden - hidden.detach())


def value_loss(
    values: Float[Tensor, " N"],
    columns: Mapping[str, Float[Tensor, " N"]],
    gae: GAE,
    divisor: Float[Tensor, ""] | float,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """A row's share of the value's loss, and sums over its tokens for the log.

    Args:
        values: [N] with gradient; columns: [N] each, those of `dirl.rl.credit`.
    """
    returns = columns["returns"]
    loss, clipped = clipped_squared_error(values, columns["values"], returns, gae.value_clip)
    total = (loss * columns["value_weights"]).sum() / divisor
    error, wanted = (returns - values.detach()).double(), returns.double()
    sums = {
        "value": values.detach().sum(),
        "value_clip_fraction": clipped.float().sum(),
        "return": wanted.sum(),
        "return_squares": wanted.square().sum(),
        "value_error": error.sum(),
        "value_error_squares": error.square().sum(),
    }
    return total, sums


def take_explained_variance(means: dict[str, Float[Tensor, ""]]) -> float | None:
    """Of means over all tokens of a step, of which what serves nothing else is taken out; None: nothing to explain."""
    squares, error, errors = (means.pop(n) for n in ("return_squares", "value_error", "value_error_squares"))
    return explained_variance(torch.ones_like(error), means["return"], squares, error, errors)
