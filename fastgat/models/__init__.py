"""Classifiers and generators: Table 1 of the paper, and a registry by name."""

from fastgat.models.normalize import Normalize, normalization, normalized
from fastgat.models.registry import classifier_names, create_classifier, is_factory
from fastgat.models.table1 import Classifier, Generator

__all__ = [
    "Classifier",
    "Generator",
    "Normalize",
    "classifier_names",
    "create_classifier",
    "is_factory",
    "normalization",
    "normalized",
]
