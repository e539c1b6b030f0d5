"""LLaDA2's forward from its equations, by the names of its checkpoints: a token, head and expert at a time, in float64.

Nothing here imports the package or transformers.
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
    dense_layers: int
    experts: int
    choices: int
    groups: int
    kept_groups: int
    scale: float
    theta: float
    eps: float
    rotated: float = 0.5


def llada2_logits(weights: Mapping[str, Tensor], sizes: Sizes, ids: Sequence[int], mask: Tensor) -> Tensor:
    """[L, V] logits of tokens at positions 0, 1, ...; `mask` [L, L] says what each query sees."""
    w = {name: value.double() for name, value in weights.items()}
    x = [w["model.word_embeddings.weight"][i] for i in ids]
    for n in range(sizes.layers):
        own = {name.removeprefix(f"model.layers.{n}."): v for name, v in w.items() if f"layers.{n}." in name}
        normed = [_norm(v, own["input_layernorm.weight"], sizes.eps) for v in x]
        x = [a + b for a, b in zip(x, _attention(own, sizes, normed, mask), strict=True)]
        normed = [_norm(v, own["post_attention_layernorm.weight"], sizes.eps) for v in x]
        mlp = [_swiglu(own, "mlp.", v) if n < sizes.dense_layers else _experts(own, sizes, v) for v in normed]
        x = [a + b for a, b in zip(x, mlp, strict=True)]
    return torch.stack([w["lm_head.weight"] @ _norm(v, w["model.norm.weight"], sizes.eps) for v in x])


def route(scores: Tensor, bias: Tensor, sizes: Sizes) -> dict[int, float]:
    """Expert -> weight, of a token with scores [E]."""
    wanted = (scores + bias).tolist()
    size = sizes.experts // sizes.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(sizes.groups)]
    groups.sort(key=lambda members: -sum(sorted((wanted[e] for e in members), reverse=True)[:2]))
    candidates = [e for members in groups[: sizes.kept_groups] for e in members]
    chosen = sorted(candidates, key=lambda e: -wanted[e])[: sizes.choices]
    total = sum(float(scores[e]) for e in chosen)
    return {e: sizes.scale * float(scores[e]) / total for e in chosen}


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / math.sqrt(float((x * x).mean()) + eps)


def _attention(w: Mapping[str, Tensor], sizes: Sizes, x: list[Tensor], mask: Tensor) -> list[Tensor]:
    heads, key_heads, dim = sizes.heads, sizes.key_heads, sizes.head_dim
    queries, keys, values = [], [], []
    for position, token in enumerate(x):
        rows = (w["attention.query_key_value.weight"] @ token).view(heads + 2 * key_heads, dim)
        normed = [_norm(h, w["attention.query_layernorm.weight"], sizes.eps) for h in rows[:heads]]
        queries.append([_rotate(h, position, sizes) for h in normed])
        normed = [_norm(h, w["attention.key_layernorm.weight"], sizes.eps) for h in rows[heads : heads + key_heads]]
        keys.append([_rotate(h, position, sizes) for h in normed])
        values.append(rows[heads + key_heads :])
    out = []
    for q in range(len(x)):
        seen = [k for k in range(len(x)) if mask[q, k]]
        parts = []
        for head in range(heads):
            group = head // (heads // key_heads)
            scores = torch.stack([queries[q][head] @ keys[k][group] / math.sqrt(dim) for k in seen])
            share = torch.softmax(scores, 0)
            parts.append(sum(share[i] * values[k][group] for i, k in enumerate(seen)))
        out.append(w["attention.dense.weight"] @ torch.cat(parts))
    return out


def _rotate(head: Tensor, position: int, sizes: Sizes) -> Tensor:
    """Pairs (i, i + half) of the first part turn by position / theta^(2i / width); the rest stays."""
    width = int(sizes.head_dim * sizes.rotated)
    half, turned = width // 2, head.clone()
    for i in range(half):
        angle = position / sizes.theta ** (2 * i / width)
        a, b = float(head[i]), float(head[i + half])
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def _experts(w: Mapping[str, Tensor], sizes: Sizes, x: Tensor) -> Tensor:
    scores = 1 / (1 + torch.exp(-(w["mlp.gate.weight"] @ x)))
    out = _swiglu(w, "mlp.shared_experts.", x)
    for expert, weight in route(scores, w["mlp.gate.expert_bias"], sizes).items():
        out = out + weight * _swiglu(w, f"mlp.experts.{expert}.", x)
    return out


def _swiglu(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate, up = w[f"{name}gate_proj.weight"] @ x, w[f"{name}up_proj.weight"] @ x
    return w[f"{name}down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
