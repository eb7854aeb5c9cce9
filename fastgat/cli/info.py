"""fastgat info."""

import json

import click

from fastgat.data import DATASETS
from fastgat.engine.device import device_name, has_fast_bfloat16, pick_device
from fastgat.errors import DataError
from fastgat.methods import METHODS
from fastgat.models import classifier_names
from fastgat.reporting.environment import environment


@click.command()
@click.option("--json", "as_json", is_flag=True, help="as one JSON object")
def info(as_json: bool) -> None:
    """Say what fastgat finds on this machine: versions, device, data sets, methods."""
    device = pick_device("auto")
    installed = environment()
    content = {
        **{name: installed[name] for name in ("packages", "python", "platform", "cuda")},
        "device": f"{device_name(device)} ({device})",
        "bfloat16": "in hardware" if has_fast_bfloat16(device) else "slow on this device",
        "datasets": {name: _where(name) for name in DATASETS},
        "methods": list(METHODS),
        "classifiers": classifier_names(),
    }
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    for name, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item or '-'}" for key, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        click.echo(f"{name:12} {value or '-'}")


def _where(name: str) -> str | None:
    try:
        folder = DATASETS[name].find(None)
    except DataError as error:
        return str(error)
    return str(folder) if folder else None
