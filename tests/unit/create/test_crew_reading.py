"""`snapshot create` with a crew: the same snapshot as without, whatever happens to the workers or the files."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from repository import crew as crews
from repository.chunker import Chunker
from repository.codec import Codec, Packed, Payload
from repository.create import builder, errand, ingest, readers, reading, worker
from repository.create.command import Created, CreateRequest, create_snapshot
from repository.create.events import FileTask, Outcome
from repository.create.exclude import Excludes
from repository.create.readers import Readers
from repository.create.reading import Answer, Unread, Whole
from repository.create.recent import Recent
from repository.create.source import Directory, SourceError, SourceFile
from repository.crew import Asked, Crew
from repository.errors import InterruptedByUserError, NoSpaceError
from repository.format.inode import DirRef, Inode, NodeKind
from repository.format.record import Buffer, RecordKind, Stored
from repository.ids import FileId, RecordId
from repository.leases import Lease
from repository.ledger import Claim
from repository.repo import Repository
from repository.store import RecordStore
from repository.units import KIB, MIB
from tests.support.repositories import SetClock
from tests.support.sources import Told, age, content_of, listing_of, store, stored_inode

FILES = 120
CHANGED_FILES = FILES + 4 + 3
Begin = Callable[[SourceFile, Directory, bytes], None]
Everything = tuple[RecordId | None, RecordId | None, dict[bytes, Inode]]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crew of two, wherever this runs, and small batches."""
    monkeypatch.setattr(crews, "cores", lambda: 3)
    monkeypatch.setattr("repository.create.readers.cores", lambda: 3)
    monkeypatch.setattr(builder, "BATCH_FILES", 16)


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Crew]]:
    """The crews that were hired; at the end all of their processes must be gone."""
    hired: list[Crew] = []
    real = crews.hire

    def hire(wanted: int, work: crews.Work, *, trays: int, tray_bytes: int) -> Crew | None:
        found = real(wanted, work, trays=trays, tray_bytes=tray_bytes)
        if found is not None:
            hired.append(found)
        return found

    monkeypatch.setattr("repository.create.readers.hire", hire)
    yield hired
    for one in hired:
        for pid in one.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.fixture
def tree(files: Path) -> Path:
    """Files of all sorts: empty, equal ones, of several chunks, of zeros, with attributes, linked, sparse, large."""
    for number in range(FILES):
        directory = files / f"d{number % 7}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number:03}").write_bytes(b"%d\n" % (number % 50) * (number * 37))
    for number in range(4):
        (files / "d0" / f"same{number}").write_bytes(b"same" * 500)
    (files / "several").write_bytes(os.urandom(3 * MIB))
    (files / "zeros").write_bytes(bytes(700 * KIB))
    (files / "large").write_bytes(os.urandom(5 * MIB))
    os.truncate(files / "large", 9 * MIB)
    os.link(files / "several", files / "d0" / "also")
    os.setxattr(files / "d1" / "f001", "user.colour", b"blue \xff")
    os.chmod(files / "d1" / "f008", 0o4751)
    os.utime(files / "d1" / "f008", ns=(5, -7_000_000_001))
    return files


def all_of(repo: Repository, created: Created, tree: Path) -> Everything:
    """Everything that a snapshot holds below `tree`: ids of content, and each file's inode."""
    manifest = repo.manifest(created.slot)
    assert manifest is not None
    found: dict[bytes, Inode] = {}

    def walk(path: bytes, listing: DirRef) -> None:
        for name, inode in repo.reader.scan(listing):
            if inode.kind is NodeKind.DIRECTORY:
                walk(path + b"/" + name, inode.directory)
            else:
                found[path + b"/" + name] = inode

    listing = listing_of(repo, created.slot, tree)
    walk(b"", listing)
    return listing.content, manifest.links, found


@pytest.fixture
def expected(path: Path, tree: Path, tmp_path: Path, clock: SetClock) -> Everything:
    """The snapshot of `tree` as threads of this process make it, in a repository with the same keys."""
    shutil.copytree(path, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repository.create.readers.hire", lambda wanted, work, **trays: None)
        with Repository.open(tmp_path / "copy", writable=True, clock=clock) as repo:
            created, told = store(repo, tree)
            assert told.problems == []
            return all_of(repo, created, tree)


def test_the_snapshot_is_the_same_with_and_without(
    expected: Everything, repo: Repository, tree: Path, crew: list[Crew]
) -> None:
    created, told = store(repo, tree)
    assert crew and crew[0].workers == 2
    assert all_of(repo, created, tree) == expected
    assert (told.problems, created.changed_files) == ([], CHANGED_FILES)
    assert created.slot.totals == (CHANGED_FILES + 1, told.done_bytes)
    marked = stored_inode(repo, created.slot, tree / "d1" / "f001")
    assert marked is not None and marked.xattrs == ((b"user.colour", b"blue \xff"),)


def test_a_batch_costs_one_question_and_one_put(
    repo: Repository, tree: Path, crew: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no thread: what waits for the interpreter is as dear as what it would do meanwhile."""
    asked: list[int] = []
    puts: list[int] = []
    handed: list[object] = []
    ask, put, submit = Crew.begin, RecordStore.put_packed, Readers.submit

    def count_ask(self: Crew, request: Sequence[Buffer], descriptors: Sequence[int] = ()) -> Asked:
        asked.append(len(descriptors))
        return ask(self, request, descriptors)

    def count_submit(self: Readers, read: Callable[[], list[Outcome]]) -> "Future[list[Outcome]]":
        handed.append(read)
        return submit(self, read)

    def count_put(self: RecordStore, kind: RecordKind, packed: Sequence[Packed], lease: Lease) -> list[Stored]:
        puts.append(len(packed))
        return put(self, kind, packed, lease)

    monkeypatch.setattr(Crew, "begin", count_ask)
    monkeypatch.setattr(Readers, "submit", count_submit)
    monkeypatch.setattr(readers, "ASKED_AHEAD", 100)
    monkeypatch.setattr(RecordStore, "put_packed", count_put)
    monkeypatch.setattr(SourceFile, "__init__", _only("large", SourceFile.__init__))
    store(repo, tree)
    assert FILES // 16 <= len(asked) <= FILES // 16 + 4
    assert len(puts) <= len(asked) and len(handed) == 1, "the large file has a thread"
    assert sum(asked) <= len(asked) + 8, "a descriptor a directory, not a file"


def test_who_would_wait_for_the_crew_reads_what_nobody_has_begun(
    expected: Everything,
    repo: Repository,
    tree: Path,
    tmp_path: Path,
    crew: list[Crew],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The workers answer nothing until a small file was opened here: else this would never end."""
    parent, opened = os.getpid(), tmp_path / "opened"
    begin, encode = SourceFile.__init__, errand.encode_reply

    def opening(self: SourceFile, directory: Directory, name: bytes) -> None:
        if os.getpid() == parent and name != b"large":
            opened.touch()
        begin(self, directory, name)

    def waiting(answers: Sequence[Answer], packed: Sequence[Packed]) -> list[Buffer]:
        while not opened.exists():
            time.sleep(0.001)
        return encode(answers, packed)

    monkeypatch.setattr(SourceFile, "__init__", opening)
    monkeypatch.setattr(worker, "encode_reply", waiting)
    monkeypatch.setattr(readers, "ASKED_AHEAD", 1)
    created, told = store(repo, tree)
    assert crew and all_of(repo, created, tree) == expected and told.problems == []


def test_small_files_that_are_read_here_are_stored_a_portion_at_a_time(
    repo: Repository, files: Path, crew: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a batch holds, for the memory."""
    for number in range(32):
        (files / f"f{number:02}").write_bytes(os.urandom(20 * KIB))
    monkeypatch.setattr("repository.create.readers.hire", lambda wanted, work, **trays: None)
    monkeypatch.setattr(ingest, "PORTION_BYTES", 100 * KIB)
    put = RecordStore.put
    chunks: list[int] = []

    def count(
        self: RecordStore, kind: RecordKind, payloads: Sequence[Buffer], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]:
        if kind is RecordKind.CHUNK:
            chunks.append(len(payloads))
        return put(self, kind, payloads, lease, claim)

    monkeypatch.setattr(RecordStore, "put", count)
    store(repo, files)
    assert sorted(chunks) == [1, 1, 5, 5, 5, 5, 5, 5]


def _only(
    name: str, begin: Callable[[SourceFile, Directory, bytes], None]
) -> Callable[[SourceFile, Directory, bytes], None]:
    """`SourceFile.__init__` that lets this process open nothing but `name`."""
    parent = os.getpid()

    def opening(self: SourceFile, directory: Directory, opened: bytes) -> None:
        assert os.getpid() != parent or opened == name.encode(), "a small file was opened here"
        begin(self, directory, opened)

    return opening


def test_with_one_processor_there_is_no_crew(
    expected: Everything,
    repo: Repository,
    tree: Path,
    crew: list[Crew],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crews, "cores", lambda: 1)
    created, _ = store(repo, tree)
    assert crew == [] and all_of(repo, created, tree) == expected


def test_a_few_files_take_no_crew(repo: Repository, files: Path, crew: list[Crew]) -> None:
    (files / "a").write_bytes(b"x")
    store(repo, files)
    assert crew == []


@pytest.mark.logs("crew.lost")
@pytest.mark.parametrize("survivors", [0, 1])
def test_a_killed_worker_loses_nothing(
    expected: Everything,
    repo: Repository,
    tree: Path,
    crew: list[Crew],
    monkeypatch: pytest.MonkeyPatch,
    survivors: int,
) -> None:
    ask = Crew.begin
    asked: list[int] = []

    def kill_and_ask(self: Crew, request: Sequence[Buffer], descriptors: Sequence[int] = ()) -> Asked:
        asked.append(1)
        if len(asked) == 3:
            for pid in self.pids()[survivors:]:
                os.kill(pid, signal.SIGKILL)
        return ask(self, request, descriptors)

    monkeypatch.setattr(Crew, "begin", kill_and_ask)
    created, told = store(repo, tree)
    assert all_of(repo, created, tree) == expected and told.problems == []
    assert len(asked) > 3


@pytest.mark.logs("crew.lost")
def test_a_worker_that_stumbles_loses_nothing(
    expected: Everything, repo: Repository, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> list[Buffer]:
        raise MemoryError

    monkeypatch.setattr(worker, "encode_reply", stumble)
    created, _ = store(repo, tree)
    assert all_of(repo, created, tree) == expected


def test_an_interrupt_leaves_no_process_and_no_snapshot(repo: Repository, tree: Path, crew: list[Crew]) -> None:
    class Ending(Told):
        def advance(self, done_bytes: int, done_files: int) -> None:
            super().advance(done_bytes, done_files)
            if self.done_files >= 40:
                raise InterruptedByUserError("Interrupted.")

    told = Ending()
    with pytest.raises(InterruptedByUserError):
        create_snapshot(repo, CreateRequest([os.fsencode(tree)], None, Excludes(())), told, told)
    assert crew and repo.listed() == []
    created, _ = store(repo, tree)
    assert created.changed_files == CHANGED_FILES


def test_no_room_for_what_a_worker_packed(
    repo: Repository, tree: Path, crew: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[Stored]:
        raise NoSpaceError("the disk is full", 4096)

    monkeypatch.setattr(RecordStore, "put_packed", full)
    with pytest.raises(NoSpaceError):
        store(repo, tree)
    assert crew and repo.listed() == []


def test_what_changes_vanishes_or_cannot_be_read_is_told_as_ever(
    repo: Repository, tree: Path, crew: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, unchanged = SourceFile.__init__, SourceFile.unchanged
    names: dict[int, bytes] = {}

    def opening(self: SourceFile, directory: Directory, name: bytes) -> None:
        if name == b"f010":
            raise SourceError(OSError(errno.EIO, "Input/output error"))
        if name == b"f011":
            raise SourceError(OSError(errno.ENOENT, "No such file or directory"))
        begin(self, directory, name)
        names[id(self)] = name

    monkeypatch.setattr(SourceFile, "__init__", opening)
    monkeypatch.setattr(SourceFile, "unchanged", lambda self: names[id(self)] != b"f012" and unchanged(self))
    created, told = store(repo, tree)
    assert crew
    assert sorted(told.problems) == [
        (os.fsencode(tree / "d3" / "f010"), "Input/output error"),
        (os.fsencode(tree / "d5" / "f012"), reading.CHANGED),
    ]
    assert stored_inode(repo, created.slot, tree / "d3" / "f010") is None
    assert stored_inode(repo, created.slot, tree / "d4" / "f011") is None
    changed = stored_inode(repo, created.slot, tree / "d5" / "f012")
    assert changed is not None and content_of(repo, changed) == (tree / "d5" / "f012").read_bytes()


def test_known_content_is_neither_packed_nor_sent(
    repo: Repository, tree: Path, crew: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier run, and of this one: nobody compresses what is there."""
    sent: list[bool] = []
    decode = errand.decode_reply

    def note(reply: memoryview) -> errand.Reply:
        found = decode(reply)
        sent.extend(one.payload is not None for one in found.packed)
        return found

    monkeypatch.setattr(ingest, "decode_reply", note)
    store(repo, tree)
    distinct = sum(sent)
    assert 0 < distinct < len(sent), "some files are equal"
    sent.clear()
    age(tree)
    created, _ = store(repo, tree)
    assert created.changed_files == CHANGED_FILES
    assert sent and not any(sent)


def test_what_the_workers_know_and_the_store_does_not_is_read_again(
    expected: Everything,
    repo: Repository,
    tree: Path,
    crew: list[Crew],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a collection that condemned it meanwhile."""
    monkeypatch.setattr(repo.store, "known", lambda ids: [True] * len(ids))
    created, _ = store(repo, tree)
    assert crew and all_of(repo, created, tree) == expected


def test_files_that_have_grown_since_they_were_listed_do_not_fill_the_memory(
    expected: Everything,
    repo: Repository,
    tree: Path,
    crew: list[Crew],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker leaves what is too much for one batch to the way of large files; the snapshot is the same."""
    monkeypatch.setattr(worker, "TOGETHER_MAX_BYTES", 20 * KIB)
    created, _ = store(repo, tree)
    assert crew and all_of(repo, created, tree) == expected


def test_what_had_to_come_from_a_disk_is_asked_for_a_batch_at_a_time(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then: files that are in memory cost no more calls."""
    for number in range(5):
        (files / f"f{number}").write_bytes(b"%d" % number)
    waits = iter([0, 0, 3, 3])
    monkeypatch.setattr(worker, "disk_reads", lambda: next(waits))
    advised: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *words: advised.append(words[3]))
    codec = Codec(repo.config.id_key, repo.config.seed)
    work = worker.ReadingWork(Chunker(repo.config.chunker), codec, repo.store.known, Recent())
    directory = Directory(os.open(files, os.O_RDONLY | os.O_DIRECTORY), os.fsencode(files))
    names = [b"f0", b"gone", b"f1", b"f2", b"f3", b"f4"]
    asked = errand.encode_request([FileTask(directory, name, FileId(9), 1) for name in names])
    told = []
    for _ in range(3):
        reply = errand.decode_reply(memoryview(b"".join(work(memoryview(b"".join(asked.parts)), asked.descriptors))))
        assert [isinstance(answer, Whole) for answer in reply.answers] == [name != b"gone" for name in names]
        told.append(len(advised))
    directory.release()
    assert told == [0, 5, 5] and set(advised) == {os.POSIX_FADV_WILLNEED}


def test_an_errand_says_what_it_was_told() -> None:
    attributes = reading.Attributes(0o100644, 1, 2**32 - 1, 3, 2**33, -5, 2**62, 7)
    answers = [
        Whole(attributes, ((b"user.a", b"\0\xff"), (b"user.b", b"")), reading.CHANGED, [0, 70_000], [b"", b""]),
        Unread("Input/output error: \udcff"),
        None,
        Whole(attributes, (), "", [], []),
        Unread(""),
        Whole(attributes, (), "", [4096], [b""]),
    ]
    ids = [RecordId(bytes([number]) * 32) for number in range(1, 4)]
    packed = [
        Packed(ids[0], 70_000, Payload(1, b"packed", 2**64 - 1)),
        Packed(ids[1], 5, None),
        Packed(ids[2], 9, Payload(0, b"as it is.", 0)),
    ]
    reply = errand.decode_reply(memoryview(b"".join(errand.encode_reply(answers, packed))))
    assert reply.packed == packed
    assert reply.answers == [answer._replace(pieces=[]) if isinstance(answer, Whole) else answer for answer in answers]
