"""report.html: an evaluation as one page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2


def render_report(figures: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page of an evaluation's figures; `pictures` are PNG images by name: curves, power, pictures."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": lambda share: f"{share:.1%}", "figure": _figure, "size": size}
    template = environment.from_string(files("fastgat.reporting").joinpath("report.html.jinja").read_text("utf-8"))
    embedded = {name: "data:image/png;base64," + base64.b64encode(image).decode() for name, image in pictures.items()}
    return template.render(**{"classes": None, "environment": None, "dataset": None, **figures}, pictures=embedded)


def size(epsilon: float, norm: str) -> str:
    """An epsilon as people write it: n/255 for pixels, where it is one."""
    steps = epsilon * 255
    if norm == "linf" and abs(steps - round(steps)) < 1e-6:
        return f"{round(steps)}/255"
    return f"{epsilon:.4g}"


def _figure(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)
