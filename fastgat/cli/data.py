"""fastgat data list, fetch and verify."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
from rich.console import Console

from fastgat.data import DATASETS
from fastgat.data.registry import Source, silent
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
        found = source.find(data_dir)
        click.echo(f"{name:9} {source.title}\n          {found or 'not on this machine'}")


@data.command()
@click.argument("name")
@where
def fetch(name: str, data_dir: Path | None) -> None:
    """Bring the data set NAME to this machine: downloaded where need be, extracted and verified."""
    with contextlib.closing(TransferBar(Console())) as transfer:
        click.echo(f"{name}: {_source(name).fetch(data_dir, transfer)}")


@data.command()
@click.argument("names", nargs=-1)
@where
def verify(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Read the data sets NAMES (all that are here, if none is named) and compare them with the published MD5 sums."""
    for name in names or DATASETS:
        source = _source(name)
        if source.find(data_dir) is None:
            if names:
                raise DataError(f"{name} is not on this machine: run `fastgat data fetch {name}`")
            continue
        click.echo(f"{name}: {source.fetch(data_dir, silent, again=True)} is complete and as published")


def _source(name: str) -> Source:
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}{suggestion(name, DATASETS)}")
    return DATASETS[name]
