"""What a trained classifier is worth."""

from fastgat.evaluation.run import evaluate_run, write_evaluation

__all__ = ["evaluate_run", "write_evaluation"]
