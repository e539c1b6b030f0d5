"""FLOPs of a forward, its backward and what is recomputed; a multiplication with an addition counts as two.

Attention is counted by visible pairs and the head by scored positions, so these are the operations that the
objective needs, not those that a padded or dense implementation would spend.
"""

from dataclasses import dataclass, fields

from dirl.batches import IGNORE, PackedBatch
from dirl.models.shape import ModelShape
from dirl.modules.layers import Checkpointing
from dirl.planning.pairs import visible_pairs


@dataclass(frozen=True)
class Work:
    """What a forward is asked to do; the numbers are means where a plan assumes lengths."""

    tokens: float = 0.0
    """Positions that go through the layers."""
    pairs: float = 0.0
    """Visible (query, key) pairs, of one layer and one head."""
    scored: float = 0.0
    """Positions that meet the vocabulary."""

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(getattr(self, f.name) * times for f in fields(self)))


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by where they are spent."""

    dense: float = 0.0
    """Projections, MLPs or the experts that a token is sent to, and routers."""
    attention: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return self.dense + self.attention + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> "Flops":
        return Flops(*(getattr(self, f.name) * times for f in fields(self)))


@dataclass(frozen=True)
class TrainingFlops:
    """One forward and backward. Model FLOPs, which utilisation counts, are `forward` and `backward` alone."""

    forward: Flops
    backward: Flops
    recomputed: Flops

    @property
    def model(self) -> float:
        return self.forward.total + self.backward.total


def layout_work(batch: PackedBatch) -> Work:
    """The work of a packed row whose targets alone are scored (`likelihood: tokens`, and SFT)."""
    return Work(len(batch), visible_pairs(batch.layout), int((batch.target_ids != IGNORE).sum()))


def forward_flops(shape: ModelShape, work: Work) -> Flops:
    """FLOPs of a forward: a pair takes a query-key and a weight-value product in each head of each layer."""
    return Flops(
        dense=2 * shape.multiplied_weights * work.tokens,
        attention=4 * shape.query_size * shape.num_hidden_layers * work.pairs,
        head=2 * shape.embedding_parameters * work.scored,
    )


def training_flops(
    shape: ModelShape, work: Work, checkpointing: Checkpointing, adapters: int | None = None
) -> TrainingFlops:
    """Forward, backward (two products for each one of the forward), and what is computed a second time.

    Args:
        adapters: parameters of the adapters that alone learn: the backward has one product for each one of the forward
            with a frozen matrix. None: all weights learn.

    The head keeps no logits, attention no scores (half of its forward); a checkpointed layer keeps its input alone,
    and is computed anew up to the last product, whose result nothing asks for.
    """
    forward = forward_flops(shape, work)
    layers = recomputed_layers(shape.num_hidden_layers, checkpointing) / shape.num_hidden_layers
    experts = (shape.shared_expert_size or shape.experts_per_token * shape.expert_size) * shape.sparse_layers
    last = 2 * shape.hidden_size * (shape.intermediate_size * shape.dense_layers + experts) * work.tokens
    again = Flops((forward.dense - last) * layers, forward.attention * (layers + 0.5), forward.head)
    if adapters is None:
        return TrainingFlops(forward, forward * 2, again)
    own = Flops(dense=2 * adapters * work.tokens)
    backward = Flops(forward.dense, 2 * forward.attention, forward.head)
    return TrainingFlops(forward + own, backward + own * 2, again + own * layers)


def recomputed_layers(layers: int, checkpointing: Checkpointing) -> int:
    """`selective` recomputes every second one; the last of an even number is kept."""
    return {"none": 0, "full": layers, "selective": -(-layers // 2)}[checkpointing]
