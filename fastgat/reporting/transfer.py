"""A progress bar for one piece of work after another: downloads, data that are read, attacks."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TransferBar:
    """Shows a bar for each piece of work; call it with the work's name, how much is done, and how much there is.

    A bar lives from the first call with its name until `done` reaches `total`; with `transient` it is then erased.
    """

    def __init__(self, console: Console, *, transient: bool = False) -> None:
        self.console, self.transient = console, transient
        self._bars: dict[str, Progress] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            amount = DownloadColumn() if what.startswith("downloading") else MofNCompleteColumn()
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), amount, TimeRemainingColumn())
            hidden = not self.console.is_terminal
            bar = Progress(*columns, console=self.console, transient=self.transient, disable=hidden)
            bar.start()
            bar.add_task(what, total=total or None)
            self._bars[what] = bar
        bar = self._bars[what]
        bar.update(bar.task_ids[0], completed=done)
        if total and done >= total:
            self._bars.pop(what).stop()

    def close(self) -> None:
        """Take every bar off the terminal, also one whose work has failed."""
        for bar in self._bars.values():
            bar.stop()
