"""fastgat recipes."""

from pathlib import Path
from typing import Any

import click

from fastgat.config import load_toml
from fastgat.errors import ConfigError
from fastgat.options import suggestion

FOLDER = Path(__file__).parent.parent / "recipes"


@click.command()
def recipes() -> None:
    """The recipes that `fastgat train --recipe NAME` takes, with their source and the figures that it reports."""
    for name, path in _files().items():
        click.echo(f"{name}  ({path})")
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                break
            click.echo(f"   {line.removeprefix('#')}")


def load_recipe(name: str) -> dict[str, Any]:
    """The settings of the recipe called `name`; raises ConfigError where there is none."""
    files = _files()
    if name not in files:
        raise ConfigError(f"--recipe: no recipe {name!r}{suggestion(name, files)}")
    return load_toml(files[name])


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
