"""Reading trees from the loop thread: what is decoded already answers at once, the rest is loaded by a worker first."""

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

from fusefs.workers import Workers
from repository.errors import VolumeError
from repository.trees.reader import NotCached, RecordCache, TreeReader

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

LOADS_MAX: Final = 4096
"""Loads for one question. It needs a handful, and two for each level of a path that was never looked at in this mount;
more means that the cache is too small to hold them together, which would otherwise go on for ever."""


class Trees:
    """A TreeReader over a cache that refuses to read on the loop thread, and the loads that it then wants."""

    def __init__(self, cache: RecordCache, workers: Workers) -> None:
        self._cache = cache
        self._workers = workers
        self.reader: Final = TreeReader(cache)

    async def ask(self, question: Callable[[*Ts], R], *args: *Ts) -> R:
        """`question(*args)`, asked again after each load that it wanted; so it must have no effects.

        Raises what loading raises: MissingRecordError, DamagedError.
        """
        for _ in range(LOADS_MAX):
            try:
                return question(*args)
            except NotCached as wanted:
                ids = wanted.ids
            await self._workers.read(self._cache.load, ids)
        raise VolumeError("the cache of trees is too small for one question")
