"""Longer runs that go on from the end of shorter ones, where these were kept whole."""

from dataclasses import replace

from fastgat.config import TrainConfig, load_toml
from fastgat.deciding import deciding_settings
from fastgat.engine.checkpoint import load_checkpoint
from fastgat.engine.run_checkpoints import LAST, SUMMARY
from fastgat.errors import DataError, FastgatError
from fastgat.experiments.cell import Cell
from fastgat.experiments.store import CELLS, RunStore
from fastgat.files import make_folder, read_file, write_atomically


def begin_from_shorter(store: RunStore, cell: Cell) -> int:
    """Give a cell that has not begun the checkpoints of the longest finished run that differs in fewer epochs alone.

    Returns the epochs of that run; 0 where there is none, where the learning rate depends on the number of epochs, or
    with early stopping. Raises OutputError if a file cannot be written, DataError if one cannot be read, and
    CheckpointError if the shorter run's checkpoint is damaged.
    """
    folder = store.run_folder(cell)
    if (folder / LAST).exists() or "epochs" in deciding_settings(cell.config) or cell.config.run.early_stopping:
        return 0
    shorter = max(_shorter(store, cell), key=lambda each: each.config.epochs, default=None)
    if shorter is None:
        return 0
    source = store.run_folder(shorter)
    load_checkpoint(source / LAST)  # told here, a damaged one is named where it lies
    make_folder(folder)
    for name in ("metrics.jsonl", *sorted(path.name for path in source.glob("best*.safetensors")), LAST):
        try:
            content = read_file(source / name)
        except OSError as error:
            raise DataError(f"{source / name}: cannot be read: {error.strerror}") from None
        write_atomically(folder / name, content)  # LAST comes last: without it the cell has not begun
    return shorter.config.epochs


def _shorter(store: RunStore, cell: Cell) -> list[Cell]:
    """The finished cells, kept whole, that `cell` would be with fewer epochs."""
    found = []
    for file in (store.folder / CELLS).glob(f"*/{LAST}"):
        path = file.with_name("config.toml")
        try:
            config = TrainConfig.from_run(load_toml(path), str(path))
            other = Cell(replace(cell.config, epochs=config.epochs))
        except FastgatError:  # not a cell of today's fastgat
            continue
        same = other.name == file.parent.name and store.code(other) == cell.code
        if same and config.epochs < cell.config.epochs and (file.with_name(SUMMARY)).exists():
            found.append(other)
    return found
