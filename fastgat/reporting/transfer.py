"""A progress bar for one piece of work after another: downloads, data that are read, attacks."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class TransferBar:
    """Shows a bar for each piece of work; call it with the work's name, how much is done, and how much there is.

    It shows itself from first call to last, and if `transient` leaves nothing behind.
    """

    def __init__(self, console: Console, *, transient: bool = False) -> None:
        self.console, self.transient = console, transient
        self._bars: dict[str, tuple[Progress, TaskID]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            amount = DownloadColumn() if what.startswith("downloading") else MofNCompleteColumn()
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), amount, TimeRemainingColumn())
            progress = Progress(
                *columns, console=self.console, transient=self.transient, disable=not self.console.is_terminal
            )
            progress.start()
            self._bars[what] = progress, progress.add_task(what, total=total or None)
        progress, task = self._bars[what]
        progress.update(task, completed=done)
        if total and done >= total:
            progress.stop()
            del self._bars[what]

    def close(self) -> None:
        """Take every bar off the terminal, also one whose work has failed."""
        for progress, _ in self._bars.values():
            progress.stop()
