"""lm-evaluation-harness (the package lm_eval, an extra): its generation tasks, answered by engines of this package."""
