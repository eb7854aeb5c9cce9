"""A run folder is one process's alone while it trains there."""

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from fastgat.data.identity import Identity
from fastgat.engine.run_checkpoints import Checkpoint, adopt_best, find_checkpoint
from fastgat.errors import OutputError
from fastgat.files import locked, make_folder


class HeldFolder(ExitStack):
    """A context that keeps other processes out of the run folder which is claimed, locked or opened in it."""

    _locked: Path | None = None

    def claim(self, folders: Iterable[Path]) -> Path:
        """Make the first of `folders` that no other process has made; it goes if nothing is written there.

        Raises OutputError.
        """
        for folder in folders:
            try:
                make_folder(folder.parent)
                folder.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise OutputError(f"{folder}: {error.strerror}") from None
            self.callback(_remove_if_empty, folder)
            return folder
        raise OutputError("no name is left for a run folder: choose an --output")

    def lock(self, folder: Path | None) -> None:
        """Lock a folder, if it is there; raises OutputError where another process has it."""
        if folder is not None and folder.is_dir() and folder != self._locked:
            if not self.enter_context(locked(folder / ".lock")):
                raise OutputError(f"{folder}: another process is training there (it holds .lock)")
            self._locked = folder

    def open(self, folder: Path, checkpoint: Checkpoint | None, images: Identity | None) -> None:
        """Make and lock the folder of a run that is about to begin, or to go on from `checkpoint`, with these images.

        Raises ConfigError where another run was written there after this one had looked, OutputError.
        """
        make_folder(folder)
        if folder != self._locked:  # others could begin and end a run there while this one was prepared
            self.lock(folder)
            find_checkpoint(None, folder)
        if checkpoint is not None:
            adopt_best(checkpoint, folder)
        if images is not None:
            images.save(folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
