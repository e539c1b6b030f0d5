"""The row of a mask token in an embedding or head that was trained without one."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MaskRow:
    """Where the row of the mask token is, and how many rows there are."""

    index: int
    stored: int
    """Rows in the files."""
    rows: int
    """Rows that the model has: more than are stored where none of those is free."""
    as_it_is: bool = False
    """The token is one that the model has been trained with; its row is kept."""

    def put_into(self, value: Float[Tensor, "stored D"]) -> Float[Tensor, "rows D"]:
        """[stored, D] -> [rows, D]: the row, and those beyond what is stored, are the mean of the rows before it.

        The mean is taken in fp32, of weights as they are: cast first, then call this.
        """
        if len(value) != self.stored:
            raise ValueError(
                f"an embedding or head has {len(value)} rows, the model's config says vocab_size={self.stored}; the "
                "files belong to another config.json"
            )
        if self.as_it_is:
            return value
        mean = value[: self.index].float().mean(0).to(value.dtype)
        grown = torch.cat([value, mean.expand(self.rows - self.stored, -1)])
        grown[self.index] = mean
        return grown
