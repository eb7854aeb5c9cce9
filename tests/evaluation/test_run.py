"""The names of the runs that are evaluated together, and their images."""

from pathlib import Path

import pytest
import torch

from fastgat.config import DataConfig
from fastgat.errors import ConfigError
from fastgat.evaluation.run import RunData, RunSettings, _names, evaluate_run


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/gat", "b/gat", "a/baseline")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert _names(folders[0], [folders[1]], [folders[2]]) == ["a/gat", "b/gat", "baseline"]
    assert _names(folders[0], [], []) == ["gat"]
    files = [folders[0] / "best.safetensors", folders[0] / "last.safetensors"]
    assert _names(files[0], [files[1]], []) == ["gat", "gat/last"]


def test_a_run_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is given twice, as RUN, --source or --network"):
        _names(tmp_path, [], [tmp_path / "best.safetensors"])


def test_a_run_or_weights_from_elsewhere() -> None:
    with pytest.raises(ConfigError, match="not both"):
        evaluate_run("run", RunSettings(weights=Path("file"), dataset="digits"), classifiers=["table1"])


def test_digits_lie_in_no_folder() -> None:
    with pytest.raises(ConfigError, match="data_dir has no effect: digits are part of fastgat"):
        RunData(Path("run"), DataConfig(dataset="digits"), RunSettings(data_dir=Path()), 10, torch.device("cpu"))
