"""What a root needs, kept up to date by counting references while one root follows the other."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from pyroaring import BitMap64

from repository.errors import DamagedError
from repository.ids import RecordId, RecordNumber
from repository.reach import LEAVES_AT_ONCE, Nodes, RecordSource, References, Refers, find_all, quick_references

KNOWN_MAX: Final = 131_072
"""Nodes and references that a counter remembers of what it read: 10 MiB."""
CANCEL_MAX: Final = 131_072
"""References to leaves of each side that wait to be compared with the other's: 10 MiB each."""


class ReachCounter:
    """Exactly what one root needs, kept up to date while the root changes, at a cost that follows the change.

    Counts the references between distinct records below the root. A record is walked when it gets its first
    reference and when it loses its last. Memory: one bitmap, an entry for each record with several references,
    KNOWN_MAX references, and while it is at work CANCEL_MAX ids of each side. Not thread safe. After an error it is
    spoiled: build another.
    """

    def __init__(
        self, store: RecordSource, pause: Callable[[], None] = lambda: None, refers: Refers = quick_references
    ) -> None:
        self._store = store
        self._pause = pause
        """Called now and then while walking. May raise to end it: the counter is spoiled then."""
        self._refers = refers
        self.numbers = BitMap64()
        """What is reachable. Copy it before it is kept."""
        self.exact = True
        """False once something had to be kept that may be unreachable (a record that was stored anew elsewhere)."""
        self._further: dict[int, int] = {}
        """References beyond the first, for numbers that have any."""
        self._memory = _Memory()
        self._spoiled = False

    def add(self, roots: Iterable[RecordId]) -> None:
        """One more reference to each of `roots`. Raises DamagedError, MissingRecordError."""
        self.advance([], roots)

    def remove(self, roots: Iterable[RecordId]) -> None:
        """One reference less to each of `roots`. Raises DamagedError, MissingRecordError."""
        self.advance(roots, [])

    def advance(self, old_roots: Iterable[RecordId], new_roots: Iterable[RecordId]) -> None:
        """From `old_roots` to `new_roots`: what both need is never walked. Raises as the two others."""
        if self._spoiled:
            raise DamagedError("The reachability count met an error earlier; it has to be made anew.")
        try:
            old = list(old_roots)
            # Leaves that changed listings still name wait for what the old ones name, and cancel it, unlooked up. Where
            # too many wait they are counted at once: fewer cancel then, and the counts come out alike.
            gained = _Waiting(self._store, self._gain_all, CANCEL_MAX if old else LEAVES_AT_ONCE)
            self._walk(list(new_roots), gained, losing=False)
            lost = _Waiting(self._store, self._lose_all, CANCEL_MAX if gained.ids else LEAVES_AT_ONCE, besides=gained)
            self._walk(old, lost, losing=True)
            lost.count()
        except BaseException:
            self._spoiled = True
            raise

    def _walk(self, roots: list[RecordId], leaves: "_Waiting", *, losing: bool) -> None:
        pending = Nodes(self._store, self._lose if losing else self._gain, self._refers)
        pending.add(roots)
        while pending:
            self._pause()
            batch = pending.take()
            known = self._memory.take([record_id for record_id, _ in batch]) if losing else {}
            unknown = [one for one in batch if one[0] not in known]
            for (record_id, _), found in zip(unknown, pending.read(unknown), strict=True):
                known[record_id] = found
                if not losing:
                    self._memory.keep(record_id, found)
            nodes: list[RecordId] = []
            for record_id, _ in batch:
                nodes += known[record_id].nodes
                leaves.ids += known[record_id].leaves
            if len(leaves.ids) >= leaves.most:
                leaves.count()
            pending.add(nodes)

    def _gain(self, number: RecordNumber) -> bool:
        if number in self.numbers:
            self._further[number] = self._further.get(number, 0) + 1
            return False
        self.numbers.add(number)
        return True

    def _gain_all(self, numbers: Sequence[RecordNumber]) -> None:
        """As `_gain` of each, most of which have no reference yet."""
        coming = BitMap64(numbers)
        known = coming & self.numbers
        self.numbers |= coming
        for number in known:
            self._further[number] = self._further.get(number, 0) + 1
        if len(coming) < len(numbers):
            ascending = np.sort(np.array(numbers, np.uint64))
            for number in ascending[1:][ascending[1:] == ascending[:-1]].tolist():
                self._further[number] = self._further.get(number, 0) + 1

    def _lose_all(self, numbers: Sequence[RecordNumber]) -> None:
        """`_lose` of each."""
        for number in numbers:
            self._lose(number)

    def _lose(self, number: RecordNumber) -> bool:
        further = self._further.get(number, 0)
        if further > 1:
            self._further[number] = further - 1
        elif further == 1:
            del self._further[number]
        elif number in self.numbers:
            self.numbers.discard(number)
            return True
        else:
            self.exact = False
        return False


class _Memory:
    """What nodes refer to that were read, of the first ones as far as there is room: when they are lost, they need not
    be read again."""

    def __init__(self) -> None:
        self._found: dict[RecordId, References] = {}
        self._room = KNOWN_MAX

    def keep(self, record_id: RecordId, found: References) -> None:
        """Remembers what `record_id` refers to, where there is room."""
        size = 1 + len(found.nodes) + len(found.leaves)
        if size <= self._room and record_id not in self._found:
            self._room -= size
            self._found[record_id] = found

    def take(self, ids: Iterable[RecordId]) -> dict[RecordId, References]:
        """What those of `ids` refer to that are remembered; they are so no more."""
        taken: dict[RecordId, References] = {}
        for record_id in ids:
            found = self._found.pop(record_id, None)
            if found is not None:
                self._room += 1 + len(found.nodes) + len(found.leaves)
                taken[record_id] = found
        return taken


class _Waiting:
    """References to leaves that are to be counted, and the opposite ones `besides` them that were not counted either.

    Owner of the rule that pairs of both are dropped before the rest is counted, the gained ones first.
    """

    def __init__(
        self,
        store: RecordSource,
        count_all: Callable[[Sequence[RecordNumber]], None],
        most: int,
        besides: "_Waiting | None" = None,
    ) -> None:
        self.ids: list[RecordId] = []
        self.most: Final = most
        self._store = store
        self._count_all = count_all
        self._besides = besides

    def count(self) -> None:
        """Counts what waits here and besides."""
        if self._besides is not None and self._besides.ids:
            cancel(self.ids, self._besides.ids)
            self._besides.count()
        for start in range(0, len(self.ids), LEAVES_AT_ONCE):
            self._count_all(find_all(self._store, self.ids[start : start + LEAVES_AT_ONCE]))
        self.ids.clear()


def cancel(some: list[RecordId], others: list[RecordId]) -> None:
    """Takes out of both lists, in place, what is in both: as often as it is in the one that has it less often."""
    left = Counter(some)
    alone: list[RecordId] = []
    for one in others:
        count = left.get(one, 0)
        if count:
            left[one] = count - 1
        else:
            alone.append(one)
    some[:] = left.elements()
    others[:] = alone
