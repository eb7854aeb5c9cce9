"""Data sets by name. A new one is a file with an object like those here, and a line in DATASETS."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fastgat.data.cifar import CIFAR10, CIFAR100
from fastgat.data.digits import DIGITS
from fastgat.data.sets import DataSet
from fastgat.data.store import Progress
from fastgat.errors import ConfigError, DataError, OutputError
from fastgat.options import suggestion


class Source(Protocol):
    """Where a data set comes from."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def find(self, data_dir: Path | None) -> Path | None:
        """Where it lies on this machine, or None."""
        ...

    def fetch(self, data_dir: Path | None, progress: Progress, *, again: bool = False) -> Path:
        """Bring it to this machine and verify it; with `again`, also what was verified before."""
        ...

    def load(self, data_dir: Path | None, split_seed: int, progress: Progress) -> DataSet: ...


DATASETS: dict[str, Source] = {source.name: source for source in (CIFAR10, CIFAR100, DIGITS)}


def silent(what: str, done: int, total: int) -> None:
    """A progress report that nobody reads."""


def load_dataset(
    name: str = "auto", data_dir: Path | None = None, split_seed: int = 0, progress: Progress = silent
) -> DataSet:
    """The data set called `name`; `auto` is CIFAR-10 where it is on disk or can be downloaded, otherwise digits.

    Raises ConfigError for an unknown name, DataError for data that are missing or not what they should be.
    """
    if name == "auto":
        return _auto(data_dir, split_seed, progress)
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}{suggestion(name, ['auto', *DATASETS])}")
    return DATASETS[name].load(data_dir, split_seed, progress)


def _auto(data_dir: Path | None, split_seed: int, progress: Progress) -> DataSet:
    if CIFAR10.find(data_dir) is not None:
        return CIFAR10.load(data_dir, split_seed, progress)._replace(reason="found on this machine")
    try:
        CIFAR10.fetch(data_dir, progress)
    except (DataError, OutputError) as error:
        if data_dir is not None:
            raise
        reason = f"for want of CIFAR-10: {error}"
        return DIGITS.load(data_dir, split_seed, progress)._replace(reason=reason)
    return CIFAR10.load(data_dir, split_seed, progress)._replace(reason="downloaded")
