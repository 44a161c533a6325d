"""What is amiss in a file of data that may have a little of it."""

from __future__ import annotations

import logging

from searchr3.dataset.types import FEW
from searchr3.errors import DataError


class Flaws:
    """Counts faults of one kind, and remembers the first.

    Args:
        so: what becomes of them, for the log.
    """

    def __init__(self, so: str):
        self.so, self.count, self.first = so, 0, ""

    def add(self, where: str, fault: str) -> None:
        self.count += 1
        self.first = self.first or f"{where}: {fault}"

    def end(self, there: int, mend: str) -> None:
        """Tell of the first where they are few of all that are there.

        Raises:
            DataError: there are more of them.
        """
        if self.count > there // FEW:
            raise DataError(f"{self.first}; {mend}")
        if self.count:
            more = f", and {self.count - 1} more of {there:,}" * (self.count > 1)
            logging.getLogger(__name__).warning("%s%s: %s", self.first, more, self.so)
