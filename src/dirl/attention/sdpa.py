"""SDPA for grouped-query attention under a mask, without copies of the keys and values."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def grouped_sdpa(
    query: Float[Tensor, "N H Q D"],
    key: Float[Tensor, "N Hkv K D"],
    value: Float[Tensor, "N Hkv K D"],
    mask: Bool[Tensor, "#N 1 Q K"],
    scale: float,
) -> Float[Tensor, "N H Q D"]:
    """Attention of query [N, H, Q, D] to key and value [N, Hkv, K, D] under mask [N or 1, 1, Q, K] -> [N, H, Q, D].

    The query heads of a group are laid side by side in the length, where the memory-efficient kernels would
    refuse `enable_gqa` together with a mask and repeat keys and values instead.
    """
    n, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if groups == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    folded = query.reshape(n, key.shape[1], groups * length, width)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask.repeat(1, 1, groups, 1), scale=scale)
    return out.reshape(n, heads, length, width)
