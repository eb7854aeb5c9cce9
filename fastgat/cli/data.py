"""fastgat data list, fetch and verify."""

import contextlib
from pathlib import Path

import click
from rich.console import Console

from fastgat.data import DATASETS
from fastgat.data.cifar import Cifar
from fastgat.data.digits import Digits
from fastgat.data.folder import Folder
from fastgat.data.loaders import unreadable
from fastgat.data.registry import silent, users_images
from fastgat.data.sets import some_of
from fastgat.data.webdataset import WebDataset
from fastgat.errors import ConfigError, DataError
from fastgat.options import suggestion
from fastgat.reporting.transfer import TransferBar

where = click.option(
    "--data-dir", type=Path, metavar="PATH", help="Folder of the data  [default: $FASTGAT_DATA, else the user's cache]."
)


@click.group()
def data() -> None:
    """Find, fetch and verify data sets."""


@data.command("list")
@where
def list_(data_dir: Path | None) -> None:
    """Every data set, and where it lies on this machine."""
    for name, source in DATASETS.items():
        click.echo(f"{name:9} {source.title}\n          {source.find(data_dir) or 'not on this machine'}")
    click.echo("and your own images: folder:PATH (class folders) or webdataset:PATTERN (tar shards)")


@data.command()
@click.argument("name")
@where
def fetch(name: str, data_dir: Path | None) -> None:
    """Bring the data set NAME to this machine: downloaded where need be, extracted and verified."""
    with contextlib.closing(TransferBar(Console())) as transfer:
        click.echo(f"{name}: {_source(name, data_dir).fetch(data_dir, transfer)}")


@data.command()
@click.argument("names", nargs=-1)
@where
def verify(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Read the data sets NAMES (all that are here, if none is named) and compare them with the published MD5 sums.

    Of folder:PATH and webdataset:PATTERN every image is decoded; those that cannot be are listed.
    """
    bad = 0
    for name in names or DATASETS:
        if images := users_images(name):
            if data_dir is not None:
                raise ConfigError(f"--data-dir is for published data sets: {name} says where its images are")
            bad += _decode(name, images)
            continue
        source = _source(name, data_dir if names else None)
        if source.find(data_dir) is None:
            if names:
                raise DataError(f"{name} is not on this machine: run `fastgat data fetch {name}`")
            continue
        click.echo(f"{name}: {source.fetch(data_dir, silent, again=True)} is complete and as published")
    if bad:
        raise DataError(f"{bad} images cannot be read")


def _decode(name: str, source: Folder | WebDataset) -> int:
    """Read every image of a user's data set; returns how many cannot be read."""
    with contextlib.closing(TransferBar(Console(stderr=True))) as transfer:
        images = source.load(0, transfer)
        parts = (images.train, images.validation, images.test)
        total, flaws = sum(map(len, parts)), [flaw for part in parts for flaw in sorted(unreadable(part, transfer))]
    for flaw in flaws:
        click.echo(flaw)
    click.echo(f"{name}: {images.contents()}; from {images.source}")
    click.echo(f"classes     {some_of(images.classes)}")
    if images.passed_over:
        click.echo(f"passed over {images.passed_over}")
    click.echo(f"{name}: {total - len(flaws):,} of {total:,} images in {len(images.classes)} classes can be decoded")
    return len(flaws)


def _source(name: str, data_dir: Path | None) -> Cifar | Digits:
    """The published data set; raises ConfigError where there is none of that name, or it lies in no folder."""
    if users_images(name):
        raise ConfigError(f"{name} is a user's own: there is nothing to fetch")
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}{suggestion(name, DATASETS)}")
    if name == "digits" and data_dir is not None:
        raise ConfigError("data_dir has no effect: digits are part of fastgat")
    return DATASETS[name]
