"""Data sets, and the loaders that turn them into batches."""

from fastgat.batch import Batch
from fastgat.data.augmentation import Augmentation
from fastgat.data.iterable import IterableLoader
from fastgat.data.loader import Loader
from fastgat.data.loaders import LOADERS, choose, create_loader
from fastgat.data.registry import DATASETS, load_dataset
from fastgat.data.resident import ResidentLoader
from fastgat.data.sets import DataSet, EncodedSet, Images, ImageSet

__all__ = [
    "DATASETS",
    "LOADERS",
    "Augmentation",
    "Batch",
    "DataSet",
    "EncodedSet",
    "ImageSet",
    "Images",
    "IterableLoader",
    "Loader",
    "ResidentLoader",
    "choose",
    "create_loader",
    "load_dataset",
]
