"""`restore` as one call."""

import os
import threading
from dataclasses import replace
from typing import Final

from repository.crew import Crew, cores, hire
from repository.errors import NameTakenError, VolumeError
from repository.format.inode import Entry, NodeKind
from repository.locate import Located
from repository.notices import Notices
from repository.ports import Progress
from repository.repo import Repository
from repository.restore.attributes import Attributes, TargetError
from repository.restore.early import EarlyWriting
from repository.restore.estimate import require_room
from repository.restore.files import FileWriter
from repository.restore.hands import Hands, RestoringWork
from repository.restore.restore import Restorer
from repository.restore.sending import RestoreCounts
from repository.restore.target import WhenThere, open_destination
from repository.storage.calls import Calls
from repository.trees.reader import RecordCache, TreeReader
from repository.units import MIB

CREW_FILES_MIN: Final = 2_000
CREW_BYTES_MIN: Final = 128 * MIB
"""Less than both is done by threads before processes would have begun."""
WORKERS_MAX: Final = 8
"""Each holds 8 MiB of chunks and as much of listings; more of them would wait for the disk."""
LISTINGS_BYTES: Final = 8 * MIB
"""Decoded listings that a worker keeps: those of the job at hand."""


def restore(
    repo: Repository,
    what: Located,
    destination: bytes,
    when_there: WhenThere | None,
    *,
    notices: Notices,
    progress: Progress,
    estimate: bool = True,
) -> RestoreCounts:
    """Write `what` into the directory `destination`: a directory's content itself, a file under its name.

    `when_there` None refuses a destination that holds anything (NameTakenError). The destination gets the
    attributes of the restored directory, except with KEEP when it was there. Files that could not be restored whole,
    for damage or anything else, are told to `notices` and are not there. Raises NoSpaceError and VolumeError when the
    destination takes no more; with `estimate` NoSpaceError at once where all of it cannot fit.
    """
    if estimate:
        require_room(repo, what, destination, when_there, progress)
    is_directory = what.inode.kind is NodeKind.DIRECTORY
    inode = what.inode if is_directory and when_there is not WhenThere.KEEP else None
    attributes = Attributes()
    try:
        target = open_destination(destination, inode, empty=when_there is None, attributes=attributes)
    except TargetError as error:
        path = os.fsdecode(destination)
        if error.holds_files:
            raise NameTakenError(
                f"'{path}' holds files already; choose another directory, or --merge or --overwrite."
            ) from error
        raise VolumeError(f"'{path}' cannot be restored into: {error}.") from error
    total_bytes = what.inode.totals.content_bytes if is_directory else what.inode.size
    writer = FileWriter(repo.store, repo.reader, what.links, when_there or WhenThere.KEEP, threading.Event())
    crew = _crew(repo, what, writer)
    progress.start("Restoring", total_bytes)
    volume = os.dup(target.fd)
    calls = Calls()
    try:
        with EarlyWriting(lambda: calls.syncfs(volume)) as early:
            hands = Hands(writer, attributes, crew, early, notices, progress)
            restorer = Restorer(
                repo.reader,
                what.links,
                writer,
                hands,
                ahead=repo.store.prefetch,
                notices=notices,
                progress=progress,
            )
            try:
                if is_directory:
                    restorer.directory(target, what.inode.directory)
                else:
                    restorer.single(target, Entry(what.name, what.inode))
            finally:
                hands.close()
                if crew is not None:
                    crew.close()
    finally:
        os.close(volume)
        progress.finish()
    return restorer.counts


def _crew(repo: Repository, what: Located, writer: FileWriter) -> Crew | None:
    """Processes that write files, where there is work for them. The repository was opened for reading."""
    inode = what.inode
    files, nbytes = (1, inode.size) if inode.kind is not NodeKind.DIRECTORY else inode.totals
    if repo.store.writable or (files < CREW_FILES_MIN and nbytes < CREW_BYTES_MIN):
        return None
    still = repo.store.still()
    trees = TreeReader(RecordCache(still, LISTINGS_BYTES, inline=True))
    work = RestoringWork(replace(writer, store=still, trees=trees, patient=False))
    return hire(min(cores(), WORKERS_MAX), work)
