"""A decoder's forward by transformers' own modules, for models whose arithmetic their family does not tell."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dirl.models.families import ModelFamily
from dirl.rollout.torch.slot_cache import SlotCache
from dirl.rollout.torch.stripped import Rows


class ModuleDecoder:
    """Tokens to last hidden states, through the cache."""

    takes_both = False
    """A forward is over one block of each sequence."""

    def __init__(self, family: ModelFamily, model: nn.Module, cache: SlotCache) -> None:
        self.decoder, self.cache = family.parts.of(model, "decoder"), cache

    def __call__(
        self,
        input_ids: Int64[Tensor, "N Q"],
        positions: Int64[Tensor, "#N Q"],
        mask: Bool[Tensor, "#N 1 #Q K"] | None,
        at: Rows,
    ) -> Float[Tensor, "M D"]:
        """See `StrippedDecoder`."""
        count, length = input_ids.shape
        if mask is None:
            mask = torch.ones((1, 1, 1, self.cache.span), dtype=torch.bool, device=positions.device)
        hidden = self.decoder(
            input_ids=input_ids,
            position_ids=positions.expand(input_ids.shape),
            attention_mask=mask.expand(count, -1, length, -1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[at]
