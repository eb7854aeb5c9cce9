"""Data sets by name, and what `auto` takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastgat.data import registry
from fastgat.data.cifar import CIFAR10
from fastgat.data.digits import DIGITS
from fastgat.data.registry import load_dataset, silent
from fastgat.errors import ConfigError, DataError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(CIFAR10, url="https://nowhere.invalid/cifar-10-python.tar.gz")
    monkeypatch.setattr(registry, "CIFAR10", source)


@pytest.mark.usefixtures("offline")
def test_auto_takes_the_digits_where_there_is_no_cifar_and_says_why() -> None:
    images = load_dataset("auto")
    assert images.name == "digits"
    assert "for want of CIFAR-10" in images.reason
    assert "cannot be downloaded" in images.reason


@pytest.mark.usefixtures("offline")
def test_auto_insists_on_a_folder_that_was_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds neither cifar-10-batches-py"):
        load_dataset("auto", tmp_path)


def test_digits() -> None:
    images, other = (DIGITS.load(None, seed, silent) for seed in (0, 1))
    assert images.train.images.shape == (1257, 32, 32, 3)
    assert (len(images.validation), len(images.test)) == (180, 360)
    assert images.train.images.dtype == np.uint8
    assert images.train.images.min() == 0
    assert images.train.images.max() == 255
    assert set(images.test.labels) == set(range(10))
    labels = np.concatenate([part.labels for part in (images.train, images.validation, images.test)])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180], "UCI's own table"
    np.testing.assert_array_equal(images.test.images, other.test.images)
    assert not np.array_equal(images.validation.images, other.validation.images)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'cifar11'; did you mean 'cifar10'\?"):
        load_dataset("cifar11")
