"""What the head says of the writer of `live`: that one began, that it ended well, and where its journal begins.

Owner of the rule that `clean` is true only while no writer is at work and everything acknowledged is committed.
"""

import os
from dataclasses import replace
from typing import Final

from repository.catalog import Catalog
from repository.format.catalog import Head
from repository.format.journal import JournalMark
from repository.journal import journal_floor
from repository.lock import WriteLock
from repository.planning import Planner
from repository.ports import Clock
from repository.snapshots import Snapshots
from repository.store import RecordStore

CHAIN_KEY_BYTES: Final = 8
"""Of the random digest that a new chain of the journal starts from."""


class Marks:
    """The marks of one repository. Thread safe. All of them need the write lock."""

    def __init__(
        self,
        catalog: Catalog,
        snapshots: Snapshots,
        store: RecordStore,
        planner: Planner,
        clock: Clock,
        lock: WriteLock | None,
    ) -> None:
        self._catalog: Final = catalog
        self._snapshots: Final = snapshots
        self._store: Final = store
        self._planner: Final = planner
        self._clock: Final = clock
        self._lock: Final = lock

    def mounted(self, mountpoint: str | None = None) -> Head:
        """A writer of `live` begins. Returns the head as it was: `clean` False means that the last did not end well."""
        assert self._lock is not None
        with self._snapshots.lock:
            before = self._catalog.head()
            self._catalog.set_head(replace(before, clean=False, mounted_ns=self._clock.now_ns()))
        self._lock.describe(mountpoint)
        return before

    def restart_journal(self) -> JournalMark:
        """Begin a new chain behind the head, once all that was pending is committed; returns where it goes on.

        What crashes left behind the head can never join it again, even where it looks whole later: flushes that were
        not acknowledged then must not come back now.
        """
        with self._snapshots.lock:
            head = self._catalog.head()
            mark = JournalMark(head.journal.sequence, int.from_bytes(os.urandom(CHAIN_KEY_BYTES)))
            self._catalog.set_head(replace(head, journal=mark, journal_floor=journal_floor(self._store)))
        self._planner.journal_is_leased = True
        return mark

    def unmounted(self) -> None:
        """The writer of `live` ended, and everything that it acknowledged is committed."""
        assert self._lock is not None
        with self._snapshots.lock:
            self._catalog.set_head(replace(self._catalog.head(), clean=True, unmounted_ns=self._clock.now_ns()))
        self._lock.describe(None)
