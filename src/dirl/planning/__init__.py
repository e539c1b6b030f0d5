"""What a run will cost before it is started: tokens, FLOPs and memory, from the config alone."""

from dirl.models.shape import ModelShape
from dirl.planning.flops import Flops, Work, layout_work, training_flops
from dirl.planning.named_shapes import SHAPES
from dirl.planning.pairs import visible_pairs

__all__ = ["SHAPES", "Flops", "ModelShape", "Work", "layout_work", "training_flops", "visible_pairs"]
