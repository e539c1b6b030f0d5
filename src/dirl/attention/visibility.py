"""The one visibility predicate, shared by SFT, RL, prompt sharing and decoding.

Every token stands at (group, branch, block, view), see `dirl.batches.Layout`. With `view = 0` everywhere it
is block-causal attention, which is what an engine with a KV cache computes.
"""

from jaxtyping import Bool
from torch import Tensor

from dirl.batches import Layout


def visible(q: Layout, k: Layout) -> Bool[Tensor, "..."]:
    """Whether query q sees key k, elementwise over layouts of broadcastable shapes.

    Both must be of one group, and either k is clean, of the shared prompt or of q's branch, and of an
    earlier block, or both are of the same branch, block and view.
    """
    same_branch = k.branch_ids == q.branch_ids
    earlier = (k.view_ids == 0) & ((k.branch_ids == 0) | same_branch) & (k.block_ids < q.block_ids)
    own = same_branch & (k.block_ids == q.block_ids) & (k.view_ids == q.view_ids)
    return (k.group_ids == q.group_ids) & (earlier | own)


def dense_mask(layout: Layout) -> Bool[Tensor, "T T"]:
    """The predicate on all pairs: bool [T, T], rows are queries. For small layouts and as an oracle."""
    return visible(layout[:, None], layout[None, :])
