"""What a trained classifier is worth: curves, attacks, and a report card."""

from fastgat.evaluation.cache import Cache
from fastgat.evaluation.protocol import evaluate
from fastgat.evaluation.report import write_report
from fastgat.evaluation.results import Evaluation, EvaluationSettings
from fastgat.evaluation.run import RunSettings, evaluate_run
from fastgat.evaluation.sweep import attack_sweep, fast_gradient_sweep

__all__ = [
    "Cache",
    "Evaluation",
    "EvaluationSettings",
    "RunSettings",
    "attack_sweep",
    "evaluate",
    "evaluate_run",
    "fast_gradient_sweep",
    "write_report",
]
