"""Evaluation: metrics of responses, and one path to them for training and standalone use."""

from dirl.evaluation.metrics import ResponseMetrics
from dirl.evaluation.problems import Problem, Response
from dirl.evaluation.run import Evaluation, Settings, run_evaluation
from dirl.evaluation.tasks import EvaluationTask

__all__ = ["Evaluation", "EvaluationTask", "Problem", "Response", "ResponseMetrics", "Settings", "run_evaluation"]
