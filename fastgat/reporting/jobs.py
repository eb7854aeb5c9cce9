"""Many jobs on the terminal: a bar for each that is under way, a line for each that is done."""

from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class News(NamedTuple):
    """Progress of a job: the `share` that is done, and a few words; without a job, a remark.

    `left`: how many jobs are still to do; given only when this one has just been done.
    """

    job: str
    share: float
    words: str
    left: int | None = None


Report = Callable[[News], None]


class JobsDisplay:
    """Shows news of jobs; call it with each.

    On a terminal jobs under way have bars; elsewhere (a log file) only the lines of those that are done are printed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[words]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=3600,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.bar.start()

    def close(self) -> None:
        """Take the bars off the terminal."""
        self.bar.stop()

    def __call__(self, news: News) -> None:
        if news.left is not None:
            if news.job in self.tasks:
                self.bar.remove_task(self.tasks.pop(news.job))
            self._print(f"{news.job}: {news.words}; jobs left: {news.left}")
        elif not news.job:
            self._print(news.words)
        else:
            if news.job not in self.tasks:
                self.tasks[news.job] = self.bar.add_task(news.job, total=1, words="")
            self.bar.update(self.tasks[news.job], completed=news.share, words=news.words)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
