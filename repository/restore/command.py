"""`restore` as one call."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from repository.errors import NameTakenError, VolumeError
from repository.format.inode import Entry, NodeKind
from repository.locate import Located
from repository.notices import Notices
from repository.ports import Progress
from repository.repo import Repository
from repository.restore.estimate import require_room
from repository.restore.files import FileWriter
from repository.restore.restore import RestoreCounts, Restorer, WhenThere
from repository.restore.target import Attributes, TargetError, open_destination

WRITERS: Final = 2
"""Threads that read, verify and write: each waits for the disk or the interpreter while the other works."""


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
    try:
        target = open_destination(destination, inode, empty=when_there is None, attributes=Attributes())
    except TargetError as error:
        path = os.fsdecode(destination)
        if error.holds_files:
            raise NameTakenError(
                f"'{path}' holds files already; choose another directory, or --merge or --overwrite."
            ) from error
        raise VolumeError(f"'{path}' cannot be restored into: {error}.") from error
    total_bytes = what.inode.totals.content_bytes if is_directory else what.inode.size
    progress.start("Restoring", total_bytes)
    writer = FileWriter(repo.store, repo.reader, notices, progress)
    try:
        with ThreadPoolExecutor(WRITERS, "restore") as pool:
            restorer = Restorer(
                repo.reader, what.links, writer, pool, when_there=when_there or WhenThere.KEEP, notices=notices
            )
            if is_directory:
                restorer.directory(target, what.inode.directory)
            else:
                restorer.single(target, Entry(what.name, what.inode))
    finally:
        progress.finish()
    return restorer.counts
