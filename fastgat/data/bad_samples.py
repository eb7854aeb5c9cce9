"""What becomes of a sample that cannot be read: an error, or a count and a substitute."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from fastgat.data.sampler import Rows
from fastgat.errors import DataError

Marks = NDArray[np.bool_]
POLICIES = ("error", "skip")


class BadSamples:
    """The samples of a set that could not be read so far, by row.

    Where they are skipped, the place of one in a training batch is taken by the next good sample of that batch, so that
    batches stay full and the stream stays a function of its position; in evaluation it is left out.
    """

    def __init__(self, policy: str = "error") -> None:
        self.policy = policy
        self.reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.reasons)

    def report(self, row: int, reason: str) -> None:
        """Take note of a bad sample; `reason` names its file. Raises DataError where that is the policy."""
        if self.policy == "error":
            raise DataError(f"{reason}; --on-bad-sample skip goes on without it")
        with self._lock:
            self.reasons.setdefault(int(row), reason)

    def first(self) -> str | None:
        """The first reason."""
        return next(iter(self.reasons.values()), None)

    def substitutes(self, rows: Rows) -> Rows:
        """For each place of a batch the place whose sample it gets: its own, or that of the next good one.

        Raises DataError where there is none.
        """
        bad = self._marks(rows)
        if not bad.any():
            return np.arange(len(rows))
        self._insist(rows, bad)
        places = np.arange(2 * len(rows))
        twice = np.concatenate([bad, bad])
        after = np.minimum.accumulate(np.where(twice, len(twice), places)[::-1])[::-1]
        return after[: len(rows)] % len(rows)

    def good(self, rows: Rows) -> Rows:
        """Those that can be read, as far as is known. Raises DataError where there are none."""
        bad = self._marks(rows)
        self._insist(rows, bad)
        return rows[~bad]

    def _insist(self, rows: Rows, bad: Marks) -> None:
        if bad.all() and len(bad):
            raise DataError(f"no sample of a whole batch can be read; one of them: {self.reasons[int(rows[0])]}")

    def _marks(self, rows: Rows) -> Marks:
        if not self.reasons:
            return np.zeros(len(rows), bool)
        return np.isin(rows, np.fromiter(list(self.reasons), np.int64))
