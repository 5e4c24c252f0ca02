"""How sorted items become a canonical tree of records, and how few records a change to them touches.

Items are cut into groups behind every item whose hash is small (a *border*), not below and not above a certain
weight. Each group is a record; the references to them are the items of the storey above, cut the same way, until
one record is left. Since cutting starts afresh behind each border, the same items give the same records, whatever
happened before; and a change is rewritten only up to the next border where old and new agree again.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final, Generic, NamedTuple, TypeVar

K = TypeVar("K", bytes, int)
I = TypeVar("I")  # noqa: E741  item
R = TypeVar("R")

WRITE_GROUPS: Final = 16
"""Groups handed to the store in one batch while a tree is built: about 4,000 entries in memory."""


class Bounds(NamedTuple):
    """Weights of a group: borders count from `least` on, a cut is forced at `most`, `mean` is the average."""

    least: int
    mean: int
    most: int

    @property
    def border_below(self) -> int:
        """Hashes below this, times the item's weight, are borders (64-bit hashes)."""
        return (1 << 64) // (self.mean - self.least)


class Storey(ABC, Generic[K, I, R]):
    """One storey of a tree: how its items are keyed, cut, read and written."""

    bounds: Bounds

    @abstractmethod
    def key(self, item: I) -> K:
        """What items are sorted by."""

    @abstractmethod
    def weigh(self, item: I) -> tuple[int, int]:
        """Weight (at least 1) and a uniform 64-bit hash of the item; both depend on the item alone."""

    @abstractmethod
    def read(self, ref: R) -> Sequence[I]:
        """The items of a group."""

    @abstractmethod
    def write(self, groups: Sequence[Sequence[I]]) -> list[R]:
        """Stores each group as a record."""


class House(ABC, Generic[K, I, R]):
    """All storeys of one sort of tree. The key of a reference is the key of its last item."""

    ground: Storey[K, I, R]
    least_height: int = 0
    """0: a single group stands by itself. 1: there is always a list above."""

    @abstractmethod
    def upper(self, level: int) -> Storey[K, R, R]:
        """The storey of lists, `level` from 1 on."""


class Splitter(Generic[I]):
    """Gathers items and gives complete groups away."""

    def __init__(self, storey: Storey[K, I, R]) -> None:
        self._weigh = storey.weigh
        self._least, _, self._most = storey.bounds
        self._border_below = storey.bounds.border_below
        self._weight = 0
        self.pending: list[I] = []

    def feed(self, items: Iterable[I]) -> Iterator[list[I]]:
        """Takes `items`; yields each group that a border completes."""
        weigh, least, most = self._weigh, self._least, self._most
        for item in items:
            self.pending.append(item)
            weight, digest = weigh(item)
            self._weight += weight
            if self._weight >= least and (digest < weight * self._border_below or self._weight >= most):
                yield self.flush()

    def flush(self) -> list[I]:
        """The unfinished group; afterwards cutting starts afresh."""
        group, self.pending, self._weight = self.pending, [], 0
        return group


def build(house: House[K, I, R], items: Iterable[I]) -> R | None:
    """The tree of sorted `items`, streaming: memory for a few groups a storey. None for no items."""
    refs = _write_all(house.ground, items)
    return _finish(house, 1, refs)


def rewrite(house: House[K, I, R], root: R, height: int, changes: Sequence[tuple[K, I | None]]) -> R | None:
    """The tree that `build` would make of the items under `root` after `changes`; touches only what differs.

    `changes`: keys in ascending order, with the item that now stands there, or None for nothing. `height`: level of
    the root, 0 when it is a group of items.
    """
    if not changes:
        return root
    if height == 0:
        merged = merge(house.ground, house.ground.read(root), changes)
        return build(house, merged)
    old: _Old[K, R] = _Old(house.upper, root, height)
    edits = _rewrite_storey(house.ground, house.upper(1), old, 0, changes)
    for level in range(1, height):
        edits = _rewrite_storey(house.upper(level), house.upper(level + 1), old, level, edits)
    top = house.upper(height)
    return _finish(house, height, iter(merge(top, top.read(root), edits)))


def _finish(house: House[K, I, R], level: int, refs: Iterator[R]) -> R | None:
    """Builds storeys from `level` upwards over `refs`, until one record is left."""
    inherited = True
    while True:
        first_two = list(islice(refs, 2))
        if not first_two:
            return None
        if len(first_two) == 1 and level > house.least_height:
            return _descend(house, first_two[0], level - 1) if inherited else first_two[0]
        refs = _write_all(house.upper(level), chain(first_two, refs))
        level += 1
        inherited = False


def _descend(house: House[K, I, R], ref: R, level: int) -> R:
    """The lowest record that stands for everything under `ref`: lists of one child are passed over."""
    while level > house.least_height:
        children = house.upper(level).read(ref)
        if len(children) > 1:
            break
        ref = children[0]
        level -= 1
    return ref


def _write_all(storey: Storey[K, I, R], items: Iterable[I]) -> Iterator[R]:
    splitter = Splitter(storey)
    groups = splitter.feed(items)
    while batch := list(islice(groups, WRITE_GROUPS)):
        yield from storey.write(batch)
    if splitter.pending:
        yield from storey.write([splitter.flush()])


def merge(storey: Storey[K, I, R], items: Sequence[I], changes: Sequence[tuple[K, I | None]]) -> list[I]:
    """`items` with `changes` laid over them; both sorted by key."""
    keys = [storey.key(item) for item in items]
    merged: list[I] = []
    at = 0
    for key, item in changes:
        cut = bisect_left(keys, key, at)
        merged += items[at:cut]
        if item is not None:
            merged.append(item)
        at = cut + (cut < len(keys) and keys[cut] == key)
    merged += items[at:]
    return merged


def _rewrite_storey(
    storey: Storey[K, I, R],
    upper: Storey[K, R, R],
    old: "_Old[K, R]",
    level: int,
    changes: Sequence[tuple[K, I | None]],
) -> list[tuple[K, R | None]]:
    """Rewrites the groups of `level` that `changes` touch; returns what that changes for the storey above."""
    keys = [key for key, _ in changes]
    gone: list[K] = []
    fresh: list[R] = []
    at = 0
    while at < len(changes):
        splitter = Splitter(storey)
        groups: list[list[I]] = []
        for ref, is_last in old.nodes(level, keys[at]):
            key = upper.key(ref)
            behind = len(changes) if is_last else bisect_right(keys, key, at)
            groups += splitter.feed(merge(storey, storey.read(ref), changes[at:behind]))
            gone.append(key)
            at = behind
            if not splitter.pending:
                break
        if splitter.pending:
            groups.append(splitter.flush())
        fresh += storey.write(groups)
    edits: dict[K, R | None] = dict.fromkeys(gone)
    edits.update((upper.key(ref), ref) for ref in fresh)
    return sorted(edits.items(), key=_first)


def _first(pair: tuple[K, R | None]) -> K:
    return pair[0]


class _Old(Generic[K, R]):
    """The tree as it was, read on demand."""

    def __init__(self, upper: Callable[[int], Storey[K, R, R]], root: R, height: int) -> None:
        self._upper: Callable[[int], Storey[K, R, R]] = upper
        self._root = root
        self._height = height

    def nodes(self, level: int, key: K) -> Iterator[tuple[R, bool]]:
        """References at `level` from the one that `key` belongs to on, each with whether it is the last."""
        at: K | None = key
        pending: list[tuple[R, int, bool]] = [(self._root, self._height, True)]
        while pending:
            ref, here, is_last = pending.pop()
            if here == level:
                yield ref, is_last
                continue
            storey = self._upper(here)
            children = storey.read(ref)
            first = 0
            if at is not None:
                first = min(bisect_left(children, at, key=storey.key), len(children) - 1)
                if here == level + 1:
                    at = None
            last = len(children) - 1
            pending += [(children[index], here - 1, is_last and index == last) for index in range(last, first - 1, -1)]
