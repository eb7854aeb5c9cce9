"""What becomes of a sample that cannot be read: an error, or a count and a substitute."""

import numpy as np
from numpy.typing import NDArray

from fastgat.errors import DataError

Rows = NDArray[np.int64]  # samples, by their numbers in a set
POLICIES = ("error", "skip")


class BadSamples:
    """The samples of a set that could not be read so far, by row.

    Where they are skipped, the place of one in a training batch is taken by the next good sample of that batch, so that
    batches stay full and the stream stays a function of its position; in evaluation it is left out.
    """

    def __init__(self, policy: str = "error") -> None:
        self.policy = policy
        self.reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def report(self, row: int, name: str, flaw: object) -> None:
        """Take note of a bad sample, the file `name`, from any thread. Raises DataError where that is the policy."""
        reason = f"{name}: {flaw}"
        if self.policy == "error":
            raise DataError(f"{reason}; --on-bad-sample skip goes on without it")
        self.reasons.setdefault(int(row), reason)

    def good_places(self, rows: Rows) -> Rows:
        """The places of those that can be read, as far as is known; maybe none."""
        return np.flatnonzero(~np.isin(rows, list(self.reasons)))

    def substitutes(self, rows: Rows) -> Rows:
        """For each place of a batch the place whose sample it gets: its own, or that of the next good one.

        Raises DataError where there is none.
        """
        good = self.good_places(rows)
        if not len(good):
            raise DataError(f"no sample of a whole batch can be read; one of them: {self.reasons[int(rows[0])]}")
        return good[np.searchsorted(good, np.arange(len(rows))) % len(good)]
