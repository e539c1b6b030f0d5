"""Code of models, tried by tests: in processes without network, files, or a way out."""

from dirl.rewards.sandbox.isolated import Limits, SandboxError, why_not
from dirl.rewards.sandbox.trial import Trial, run_tests

__all__ = ["Limits", "SandboxError", "Trial", "run_tests", "why_not"]
