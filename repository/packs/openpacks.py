"""The packs that this process may append to: which stream fills which, what is full, and the one that is spare.

Everything is read and changed under the store's state lock, but for `failed`.
"""

import logging
from typing import Final

from repository.errors import BallastError, ReadOnlyError
from repository.format.pack import Stream, pack_directory_path
from repository.ledger import Ledger
from repository.packs.openpack import OpenPack
from repository.packs.table import KnownPack, PackTable

_log: Final = logging.getLogger(__name__)


class OpenPacks:
    """Every open pack is in one stream, or retired (full, waits to be sealed), or the spare one."""

    def __init__(self, ledger: Ledger, table: PackTable) -> None:
        self._ledger = ledger
        self._table = table
        self.streams: Final[dict[Stream, list[OpenPack]]] = {stream: [] for stream in Stream}
        self.retired: Final[list[OpenPack]] = []
        self.spare: OpenPack | None = None
        """Holds no record. Used when no other pack has room, or as the next pack once there is another spare."""
        self.unsynced_dirs: set[str] = set()
        """Directories that hold names of packs which are not durable yet."""
        self._failed: BallastError | None = None

    def find(self, stream: Stream, cost: int, *, anywhere: bool) -> OpenPack | None:
        """A pack with room for `cost`: of `stream`, oldest first; `anywhere`: or any other, the spare one last."""
        for pack in self.streams[stream]:
            if pack.room(self._ledger) >= cost:
                return pack
        if not anywhere:
            return None
        for packs in self.streams.values():
            for pack in packs:
                if pack.room(self._ledger) >= cost:
                    return pack
        spare = self.spare
        if spare is None or spare.room(self._ledger) < cost:
            return None
        self.use_spare(stream)
        return spare

    def use_spare(self, stream: Stream) -> OpenPack:
        """The spare pack is one of `stream` from now on."""
        spare = self.spare
        assert spare is not None
        self.spare = None
        spare.stream = stream
        self.know(spare)
        self.streams[stream].append(spare)
        self.unsynced_dirs.add(pack_directory_path(spare.pack))
        return spare

    def all(self) -> list[OpenPack]:
        """Every pack that is not sealed yet."""
        packs = [pack for packs in self.streams.values() for pack in packs] + self.retired
        return packs if self.spare is None else [*packs, self.spare]

    def know(self, pack: OpenPack) -> None:
        """From now on the pack is one of the repository's, as it is now."""
        self._table.add(
            KnownPack(
                index=pack.pack,
                sealed=False,
                records=0,
                stream=pack.stream,
                created_ns=pack.created_ns,
                written_ns=0,
                columns=pack,
            )
        )

    def retire(self, pack: OpenPack) -> None:
        """Nothing is appended any more."""
        self.streams[pack.stream].remove(pack)
        self.retired.append(pack)

    # -- failure -----------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raise ReadOnlyError after a failed write or sync: only a new open, which scans again, leaves that."""
        if self._failed is not None:
            raise ReadOnlyError(f"Writing has stopped: {self._failed}")

    @property
    def failure(self) -> BallastError | None:
        """The first failed write or sync."""
        return self._failed

    @property
    def failed(self) -> bool:
        return self._failed is not None

    def fail(self, error: BallastError) -> None:
        """Refuse every further write."""
        if self._failed is None:
            self._failed = error
            _log.error("store.failed", extra={"reason": str(error)})
