"""Who sees whom: one visibility predicate and the ways to run attention under it."""

from dirl.attention.backend import ATTENTION_NAME, AttentionMask, build_mask, register_attention
from dirl.attention.visibility import dense_mask, visible

__all__ = ["ATTENTION_NAME", "AttentionMask", "build_mask", "dense_mask", "register_attention", "visible"]
