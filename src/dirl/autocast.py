"""What autocast does to a product of its own list, for the products that it does not know."""

import torch
from jaxtyping import Float
from torch import Tensor


def of_compute_type(*tensors: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """The tensors in autocast's type where it is on, else as they are."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)
