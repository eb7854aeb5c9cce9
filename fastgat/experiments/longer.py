"""Longer runs go on from the end of shorter ones, where these were kept whole."""

from fastgat.config import TrainConfig, load_toml
from fastgat.deciding import deciding_settings
from fastgat.engine.run_checkpoints import LAST
from fastgat.errors import ConfigError, FastgatError
from fastgat.experiments.cell import Cell
from fastgat.experiments.store import CELLS, WHOLE, RunStore


def check_keeps_whole(config: TrainConfig) -> None:
    """Raises ConfigError where a longer run would not have begun as a shorter one."""
    if "epochs" in deciding_settings(config):
        raise ConfigError(f"--keep-whole has no effect with --lr-schedule {config.optimizer.lr_schedule}")
    if config.run.early_stopping is not None:
        raise ConfigError("--keep-whole has no effect with --early-stopping")


def shorter_run(store: RunStore, cell: Cell) -> Cell | None:
    """The longest finished cell, kept whole, that `cell` was like until its end; None where there is none, or where
    `cell` itself has begun."""
    settings = deciding_settings(cell.config)
    if (store.run_folder(cell) / LAST).exists() or "epochs" in settings or cell.config.run.early_stopping is not None:
        return None
    found = []
    for marker in (store.folder / CELLS).glob(f"*/{WHOLE}"):
        path = marker.with_name("config.toml")
        try:
            config = TrainConfig.from_run(load_toml(path), str(path))
        except FastgatError:  # not a run of today's fastgat
            continue
        other = Cell(config)
        alike = deciding_settings(config) == settings and other.name == marker.parent.name
        if alike and config.epochs < cell.config.epochs and store.code(other) == cell.code:
            found.append(other)
    return max(found, key=lambda each: each.config.epochs, default=None)
