"""Pages from templates: report.html, an evaluation as one file, and the sections of a result page in Markdown."""

import base64
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import jinja2


def render(template: str, package: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """The template file called `template` in `package`, filled in; values in HTML are escaped."""
    environment = jinja2.Environment(
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.from_string(files(package).joinpath(template).read_text("utf-8")).render(**values)


def render_report(figures: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page of an evaluation's figures; `pictures` are PNG images by name: curves, power, pictures."""
    filters: dict[str, Callable[..., Any]] = {"percent": lambda share: f"{share:.1%}", "figure": _figure, "size": size}
    embedded = {name: "data:image/png;base64," + base64.b64encode(image).decode() for name, image in pictures.items()}
    values = {"classes": None, "environment": None, "dataset": None, **figures, "pictures": embedded}
    return render("report.html.jinja", "fastgat.reporting", filters, **values)


def size(epsilon: float, norm: str) -> str:
    """An epsilon as people write it: n/255 in the L-inf norm where n is whole."""
    steps = epsilon * 255
    if norm == "linf" and abs(steps - round(steps)) < 1e-6:
        return f"{round(steps)}/255"
    return f"{epsilon:.4g}"


def _figure(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)
