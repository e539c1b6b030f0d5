"""Evaluation: metrics of responses, and one path to them for training and standalone use."""

from dirl.evaluation.evaluate import Evaluation, evaluate
from dirl.evaluation.metrics import ResponseMetrics

__all__ = ["Evaluation", "ResponseMetrics", "evaluate"]
