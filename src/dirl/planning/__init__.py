"""What a run will cost before it is started: tokens, FLOPs and memory, from the config alone."""

from typing import TYPE_CHECKING, Any

from dirl.models.shape import ModelShape
from dirl.planning.flops import Flops, Work, layout_work, training_flops
from dirl.planning.pairs import visible_pairs

if TYPE_CHECKING:
    from dirl.planning.named_shapes import SHAPES

__all__ = ["SHAPES", "Flops", "ModelShape", "Work", "layout_work", "training_flops", "visible_pairs"]


def __getattr__(name: str) -> Any:
    """The shapes when they are asked for: they are asked of all families, and training needs none of them."""
    if name == "SHAPES":
        from dirl.planning.named_shapes import SHAPES

        return SHAPES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
