"""Evaluation: metrics of responses, and one path to them for training and standalone use."""

from dirl.evaluation.metrics import ResponseMetrics
from dirl.evaluation.run import Evaluation, run_evaluation

__all__ = ["Evaluation", "ResponseMetrics", "run_evaluation"]
