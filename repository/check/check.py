"""Verifying a repository: every structure, every snapshot's tree, every bitmap. Never writes.

Damage is reported, not raised; each finding names its place, and the report names the files that it reaches. What one
look at a structure rules out, the others take for granted: records by the packs' pass, trees by walking, bitmaps by
comparing with the walks.
"""

from typing import TYPE_CHECKING

from repository.check.affected import AffectedFiles
from repository.check.findings import Findings
from repository.check.packs import check_packs
from repository.check.report import CheckReport
from repository.check.trees import TreeCheck
from repository.errors import BallastError, DamagedError, VolumeError
from repository.events import EVENTS_FILE
from repository.format.catalog import copy_offset
from repository.format.config import CONFIG_NAME
from repository.format.events import EVENTS_BYTES
from repository.format.intent import INTENT_BYTES, decode_intent
from repository.format.pack import PACKS_DIRECTORY
from repository.ids import RecordId
from repository.intent import INTENT_FILE
from repository.journal import pending
from repository.lock import LOCK_BYTES, LOCK_FILE
from repository.packs.load import PACK_DIRECTORIES
from repository.slotfile import CATALOG_FILE
from repository.space import RESERVE_FILE
from repository.units import format_size

if TYPE_CHECKING:
    from repository.ports import Progress
    from repository.repo import Repository


def check_repository(
    repository: "Repository", *, read_data: bool = False, progress: "Progress | None" = None
) -> CheckReport:
    """Look at everything; with `read_data` also at every live record's bytes. Raises VolumeError only where the
    volume itself does not answer."""
    findings = Findings()
    _check_files(repository, findings)
    _check_catalog(repository, findings)
    packs = check_packs(repository, findings, read_data=read_data, progress=progress)
    trees = TreeCheck(repository, findings)
    snapshots = trees.check_all()
    if trees.lost:
        findings.take(packs.vague)
    _check_journal(repository, findings)
    lost = frozenset(one for one in packs.damaged if _is_lost(repository, one)) | trees.lost
    affected = AffectedFiles(repository, lost).all() if lost else ()
    return CheckReport(findings.all(), packs.packs, packs.records, snapshots, packs.read_bytes, affected)


def _is_lost(repository: "Repository", record_id: RecordId) -> bool:
    """Whether no copy of a record can be read: another put of the same bytes heals it."""
    try:
        repository.store.read(record_id)
    except BallastError:
        return True
    return False


def _check_files(repository: "Repository", findings: Findings) -> None:
    """The small files that are overwritten in place, and the directories that exist from init on."""
    volume = repository.volume
    for name, least in ((LOCK_FILE, LOCK_BYTES), (INTENT_FILE, INTENT_BYTES), (EVENTS_FILE, EVENTS_BYTES)):
        try:
            size = volume.stat(name).st_size
        except VolumeError as error:
            findings.error(name, str(error))
            continue
        if size < least:
            findings.error(name, f"it has {size} bytes of {least}")
    reserve = repository.space.reserve()
    if not reserve.whole:
        has, wants = format_size(reserve.bytes_), format_size(reserve.wanted_bytes)
        findings.warning(RESERVE_FILE, f"{has} of {wants} are there; growth waits until it fits again")
    try:
        with volume.open(INTENT_FILE) as handle:
            intent = decode_intent(handle.pread(INTENT_BYTES, 0), repository.config.seed)
    except BallastError as error:
        findings.error(INTENT_FILE, str(error))
    else:
        if intent is None:
            findings.warning(INTENT_FILE, "it is torn: a collection was stopped before it began")
        elif not intent.is_empty and not repository.writable:
            what = f"{len(intent.unlinks)} packs and {len(intent.punches)} ranges"
            findings.warning(INTENT_FILE, f"a collection of {what} is under way, or goes on at the next opening")
    for low in range(PACK_DIRECTORIES):
        if not volume.exists(f"{PACKS_DIRECTORY}/{low:02x}"):
            findings.error(f"{PACKS_DIRECTORY}/{low:02x}", "this directory is missing")
    if not volume.exists(CONFIG_NAME):
        findings.error(CONFIG_NAME, "it is missing")


def _check_catalog(repository: "Repository", findings: Findings) -> None:
    if not repository.writable:
        repository.catalog.reload()
    for fault in repository.catalog.faults:
        first, second = copy_offset(fault.slot, 0), copy_offset(fault.slot, 1)
        place = f"{CATALOG_FILE}, slot {fault.slot} (bytes {first} and {second})"
        if fault.lost:
            findings.error(place, fault.what)
        else:
            findings.warning(place, fault.what)
    names: dict[str, int] = {}
    for slot in repository.listed():
        names[slot.name] = names.get(slot.name, 0) + 1
    for name, count in names.items():
        if count > 1:
            findings.warning(CATALOG_FILE, f"{count} snapshots are called '{name}'")


def _check_journal(repository: "Repository", findings: Findings) -> None:
    head = repository.catalog.head()
    try:
        waiting = pending(repository.store, head)
    except (DamagedError, VolumeError) as error:
        findings.error("journal", str(error))
        return
    if waiting.stopped is not None:
        findings.warning("journal", f"what was written last cannot be taken: {waiting.stopped}")
