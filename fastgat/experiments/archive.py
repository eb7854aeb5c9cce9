"""results.json: all that pages are made of, in one file that can be kept where the runs cannot.

cells      by name: settings (those that decide the result), summary or the reason why it diverged, environment
measured   by name: key, figures, environment, seconds
epochs     a row for each epoch of each cell
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from fastgat.errors import DataError
from fastgat.files import write_atomically
from fastgat.store import UNKNOWN_CONTENT, read_object

RESULTS = "results.json"


Row = dict[str, Any]
"""What metrics.jsonl says of an epoch."""


class Archive(NamedTuple):
    """The content of a results.json, the epochs by cell."""

    cells: dict[str, dict[str, Any]]
    measured: dict[str, dict[str, Any]]
    epochs: dict[str, list[Row]]


def read_archive(folder: Path) -> Archive:
    """What `folder`/results.json holds, or nothing where there is none. Raises DataError if it is damaged."""
    path = folder / RESULTS
    content = read_object(path)
    if content is None:
        return Archive({}, {}, {})
    epochs: dict[str, list[Row]] = defaultdict(list)
    try:
        for row in content["epochs"]:
            epochs[row["cell"]].append({key: value for key, value in row.items() if key != "cell"})
        if not all(isinstance(each, dict) for part in ("cells", "measured") for each in content[part].values()):
            raise TypeError
        if not all(cell.keys() >= {"settings", "summary"} for cell in content["cells"].values()):
            raise KeyError
        return Archive(content["cells"], content["measured"], epochs)
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: {UNKNOWN_CONTENT}") from None


def write_archive(folder: Path, archive: Archive) -> None:
    """Replace `folder`/results.json, a line for each epoch."""
    rows = [{"cell": name, **row} for name in sorted(archive.epochs) for row in archive.epochs[name]]
    lines = ",\n".join("    " + json.dumps(row) for row in rows)
    parts = {"cells": dict(sorted(archive.cells.items())), "measured": dict(sorted(archive.measured.items()))}
    head = json.dumps(parts, indent=2).removesuffix("\n}")
    write_atomically(folder / RESULTS, f'{head},\n  "epochs": [\n{lines}\n  ]\n}}\n'.encode())
