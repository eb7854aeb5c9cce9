"""What a trained classifier is worth."""

from fastgat.evaluation.run import evaluate_run

__all__ = ["evaluate_run"]
