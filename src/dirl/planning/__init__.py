"""What a run will cost before it is started: tokens, FLOPs and memory, from the config alone."""

from dirl.planning.flops import Flops, Work, layout_work, training_flops
from dirl.planning.pairs import visible_pairs
from dirl.planning.shape import SHAPES, ModelShape

__all__ = ["SHAPES", "Flops", "ModelShape", "Work", "layout_work", "training_flops", "visible_pairs"]
