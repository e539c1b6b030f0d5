"""Which matrices of a decoder layer tensor parallelism cuts, and how, by the names that a family has for them."""

from dataclasses import dataclass

from dirl.models.families.plain_decoder import PlainDecoder


@dataclass(frozen=True)
class TensorPlan:
    """How to cut a layer in which attention and MLP each read the output of a norm and are added to the stream.

    A process of a tensor-parallel group has some of the heads, and some of the MLP's inner columns; the stream between
    layers, the norms on it, embedding and head are whole on each. What is not named here is refused.
    """

    columns: tuple[str, ...]
    """Linear layers cut by their outputs: queries, keys, values; gate and up."""
    rows: tuple[str, ...]
    """Linear layers cut by their inputs, whose outputs the group sums: they end attention and MLP."""
    entries: tuple[str, ...]
    """Norms whose output the columns read, and nothing else does: its gradient is summed over the group."""
    head_norms: tuple[str, ...] = ()
    """Norms over the width of a head: each process sees its own heads alone, so their gradients are summed."""

    @classmethod
    def of(cls, plain: PlainDecoder) -> "TensorPlan":
        """The plan of a decoder whose arithmetic is known."""
        return cls(
            columns=(plain.query, plain.key, plain.value, plain.gate, plain.up),
            rows=(plain.output, plain.down),
            entries=(plain.input_norm, plain.mlp_norm),
            head_norms=tuple(name for name in (plain.query_norm, plain.key_norm) if name is not None),
        )

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules of a layer that have parameters."""
        return (*self.columns, *self.rows, *self.entries, *self.head_norms)
