"""Data sets, and the loaders that turn them into batches."""

from fastgat.data.batch import Batch, Loader
from fastgat.data.iterable import IterableLoader
from fastgat.data.registry import DATASETS, load_dataset
from fastgat.data.resident import ResidentLoader
from fastgat.data.sets import DataSet, ImageSet

__all__ = ["DATASETS", "Batch", "DataSet", "ImageSet", "IterableLoader", "Loader", "ResidentLoader", "load_dataset"]
