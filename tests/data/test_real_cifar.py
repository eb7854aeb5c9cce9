"""The real CIFAR-10, where FASTGAT_TEST_DATA names a folder that holds it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fastgat.data import load_dataset

FOLDER = os.environ.get("FASTGAT_TEST_DATA")


@pytest.mark.skipif(FOLDER is None, reason="FASTGAT_TEST_DATA does not name a folder with CIFAR-10")
def test_the_papers_split() -> None:
    images = load_dataset("cifar10", Path(str(FOLDER)))
    assert (len(images.train), len(images.validation), len(images.test)) == (45_000, 5_000, 10_000)
    assert images.classes[0] == "airplane"
    assert np.bincount(images.test.labels).tolist() == [1000] * 10
    assert np.bincount(np.concatenate([images.train.labels, images.validation.labels])).tolist() == [5000] * 10
