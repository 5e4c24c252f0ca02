"""The intent on disk, and carrying one out: unlinking packs and freeing ranges, by place.

Owner of the invariant *nothing is freed before the intent that names it is durable*. Carrying out is idempotent: a
pack that is gone is gone, a range that is zeros stays zeros.
"""

import errno
import logging
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from repository.errors import VolumeError
from repository.format.intent import INTENT_BYTES, Intent, Punch, decode_intent, encode_intent
from repository.format.pack import PACK_HEADER_BYTES, PUNCHED_OFFSET, pack_directory_path, pack_path
from repository.ids import PackIndex
from repository.packs.load import list_packs
from repository.storage.volume import Volume

log = logging.getLogger(__name__)

INTENT_FILE: Final = "intent"
PUNCHED_MARK: Final = b"\x01"
BLOCK_BYTES_MIN: Final = 512
BLOCK_BYTES_MAX: Final = 64 * 1024
BLOCK_BYTES_DEFAULT: Final = 4096


class IntentFile:
    """The intent of a repository. Only the holder of the write lock uses it."""

    def __init__(self, volume: Volume, seed: int) -> None:
        self._volume = volume
        self._seed = seed
        self._serial = 0

    @classmethod
    def create(cls, volume: Volume, seed: int) -> None:
        """Make the file, all of it written."""
        with volume.create(INTENT_FILE) as handle:
            handle.pwrite(bytes(INTENT_BYTES), 0)
            handle.pwrite(encode_intent(Intent(), seed), 0)
            handle.fsync()

    def read(self) -> Intent:
        """The intent that stands; an empty one for a torn file. Raises DamagedError for a later version's."""
        return self._read() or Intent()

    def _read(self) -> Intent | None:
        with self._volume.open(INTENT_FILE) as handle:
            intent = decode_intent(handle.pread(INTENT_BYTES, 0), self._seed)
        if intent is not None:
            self._serial = max(self._serial, intent.serial)
        return intent

    def next_serial(self) -> int:
        """A serial for the next round: only for people who read the file."""
        self._serial += 1
        return self._serial

    def write(self, intent: Intent) -> None:
        """Overwrite, durable on return. Raises SyncFailedError."""
        with self._volume.open(INTENT_FILE, writable=True) as handle:
            handle.pwrite(encode_intent(intent, self._seed), 0)
            handle.fdatasync()

    def clear(self) -> None:
        """Nothing is under way any more."""
        self.write(Intent(self._serial))

    def replay(self) -> Intent:
        """Carry out what a crash left behind, and clear it. Before the packs are opened. Returns what it was.

        A torn one names nothing that was begun: it is cleared.
        """
        intent = self._read()
        if intent is None:
            self.clear()
            return Intent()
        if intent.is_empty:
            return intent
        self.write(intent)  # a process that was killed may not have come to its sync
        highest = max(list_packs(self._volume), default=PackIndex(0))
        for pack in intent.unlinks:
            remove_pack(self._volume, pack, keep_header=pack == highest)
        for directory in sorted({pack_directory_path(pack) for pack in intent.unlinks}):
            self._volume.fsync_dir(directory)  # also where a killed process has unlinked them already
        free_ranges(self._volume, intent.punches)
        self.clear()
        log.info("collect.replayed", extra={"packs": len(intent.unlinks), "ranges": len(intent.punches)})
        return intent


def block_bytes_of(volume: Volume) -> int:
    """The volume's unit of allocation in bytes; 4096 where what it says cannot be."""
    size = volume.statvfs().f_frsize
    sound = BLOCK_BYTES_MIN <= size <= BLOCK_BYTES_MAX and size & (size - 1) == 0
    return size if sound else BLOCK_BYTES_DEFAULT


def remove_pack(volume: Volume, pack: PackIndex, *, keep_header: bool) -> None:
    """Unlink a pack; with `keep_header` cut it down to its header, so that its index is never given again."""
    try:
        if keep_header:
            with volume.open(pack_path(pack), writable=True) as handle:
                if handle.size() > PACK_HEADER_BYTES:
                    handle.truncate(PACK_HEADER_BYTES)
        else:
            volume.unlink(pack_path(pack))
    except VolumeError as error:
        if error.errno != errno.ENOENT:
            raise


def free_ranges(volume: Volume, punches: Iterable[Punch]) -> None:
    """Free ranges of sealed packs, pack by pack, durable on return. A pack that is gone is passed over.

    As `RecordStore.punch` does it, before there is a store: the pack is marked first. Where the volume cannot punch
    (the repository was copied there), dead records stay as they are. Raises SyncFailedError, VolumeError.
    """
    ordered = sorted(punches)
    if not ordered or not volume.punches(INTENT_FILE):
        return
    for pack, group in groupby(ordered, key=lambda punch: punch.pack):
        try:
            handle = volume.open(pack_path(pack), writable=True)
        except VolumeError as error:
            if error.errno == errno.ENOENT:
                continue
            raise
        with handle:
            handle.pwrite(PUNCHED_MARK, PUNCHED_OFFSET)
            handle.fdatasync()
            for _, offset, length in group:
                handle.punch(offset, length)
            handle.fsync()
