"""The forward of Llama and of Qwen3, which adds norms of queries and keys, from the equations, in float64.

A token and a head at a time; nothing here imports the package or transformers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    theta: float
    eps: float


def llama_logits(weights: Mapping[str, Tensor], sizes: Sizes, ids: Sequence[int], mask: Tensor) -> Tensor:
    """[L, V] logits of tokens at positions 0, 1, ...; `mask` [L, L] says what each query sees."""
    w = {name: value.double() for name, value in weights.items()}
    x = [w["model.embed_tokens.weight"][i] for i in ids]
    for n in range(sizes.layers):
        own = {name.removeprefix(f"model.layers.{n}."): v for name, v in w.items() if f"layers.{n}." in name}
        normed = [_norm(v, own["input_layernorm.weight"], sizes.eps) for v in x]
        x = [a + b for a, b in zip(x, _attention(own, sizes, normed, mask), strict=True)]
        x = [v + _mlp(own, _norm(v, own["post_attention_layernorm.weight"], sizes.eps)) for v in x]
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return torch.stack([head @ _norm(v, w["model.norm.weight"], sizes.eps) for v in x])


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else weight * x / math.sqrt(float((x * x).mean()) + eps)


def _attention(w: Mapping[str, Tensor], sizes: Sizes, x: list[Tensor], mask: Tensor) -> list[Tensor]:
    def heads(name: str, norm: str | None) -> list[list[Tensor]]:
        found = []
        for position, token in enumerate(x):
            rows = (w[f"self_attn.{name}_proj.weight"] @ token).view(-1, sizes.head_dim)
            if norm is None:
                found.append(list(rows))
            else:
                scale = w.get(f"self_attn.{norm}.weight")
                found.append([_rotate(_norm(row, scale, sizes.eps), position, sizes) for row in rows])
        return found

    queries, keys, values = heads("q", "q_norm"), heads("k", "k_norm"), heads("v", None)
    out = []
    for q in range(len(x)):
        seen = [k for k in range(len(x)) if mask[q, k]]
        parts = []
        for head in range(sizes.heads):
            group = head // (sizes.heads // sizes.key_heads)
            scores = torch.stack([queries[q][head] @ keys[k][group] / math.sqrt(sizes.head_dim) for k in seen])
            share = torch.softmax(scores, 0)
            parts.append(sum(share[i] * values[k][group] for i, k in enumerate(seen)))
        out.append(w["self_attn.o_proj.weight"] @ torch.cat(parts))
    return out


def _rotate(head: Tensor, position: int, sizes: Sizes) -> Tensor:
    half, turned = sizes.head_dim // 2, head.clone()
    for i in range(half):
        angle = position / sizes.theta ** (i / half)
        a, b = float(head[i]), float(head[i + half])
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def _mlp(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    gate, up = w["mlp.gate_proj.weight"] @ x, w["mlp.up_proj.weight"] @ x
    return w["mlp.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
