"""What `snapshot create` finds out before it stores anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from repository.create import estimate
from repository.create.command import CreateRequest, create_snapshot
from repository.create.estimate import Counter, Sampler
from repository.create.exclude import Excludes
from repository.create.mounts import held_bytes, mountpoint_of
from repository.create.rough import sizes_fit
from repository.errors import DamagedError, InterruptedByUserError, NoSpaceError
from repository.format.inode import DirRef
from repository.policy.levels import Room
from repository.policy.preflight import Estimate, Place
from repository.repo import Repository
from repository.trees.reader import Segment
from repository.units import GB, GIB, KIB, MIB
from tests.support.repositories import SetClock
from tests.support.sources import Told, age, listing_of, names_in, opened_files, store
from tests.support.stores import noise


def open_below(files: Path) -> list[str]:
    """What this process has open there."""
    opened = [os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.lexists(link.path)]
    return [path for path in opened if path.startswith(str(files))]


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Estimate | None]]:
    """Estimates made inside."""
    found: list[Estimate | None] = []
    require = estimate.require_room

    def note(*args: object, **words: object) -> Estimate | None:
        found.append(require(*args, **words))  # type: ignore[arg-type]
        return found[-1]

    with monkeypatch.context() as patched:
        patched.setattr("repository.create.command.require_room", note)
        yield found


def with_room(monkeypatch: pytest.MonkeyPatch, repo: Repository, available_bytes: int) -> None:
    """The volume says that it has this much, of which nothing has to stay free."""
    monkeypatch.setattr(repo.space, "room", lambda: Room(5 * available_bytes, available_bytes))
    monkeypatch.setattr("repository.policy.preflight.BUFFER_BYTES", 0)
    monkeypatch.setattr("repository.policy.preflight.LARGE_BYTES", 1)


def test_with_room_for_all_the_disk_holds_nothing_is_looked_at(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "a").write_bytes(b"x")
    with_room(monkeypatch, repo, 1 << 60)
    with asked(monkeypatch) as found:
        store(repo, files)
    assert found == [None]


def test_what_the_parent_snapshot_has_is_expected_to_be_there_still(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who keeps most of a disk in here need not wait for a second scan of it each time."""
    (files / "a").write_bytes(os.urandom(10_000))
    store(repo, files)
    (files / "b").write_bytes(os.urandom(5000))
    with_room(monkeypatch, repo, 6000)
    monkeypatch.setattr(estimate, "held_bytes", lambda paths, below: 15_500)
    with asked(monkeypatch) as found:
        store(repo, files)
        monkeypatch.setattr(estimate, "held_bytes", lambda paths, below: 21_001)
        store(repo, files)
    assert found == [None, Estimate(0, 0)]


def test_with_room_for_all_that_is_new_no_file_is_read(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (files / name).write_bytes(os.urandom(10_000))
    age(files)
    store(repo, files)
    (files / "c").write_bytes(os.urandom(5000))
    with_room(monkeypatch, repo, 6000)
    opened = opened_files(monkeypatch)
    with asked(monkeypatch) as found:
        store(repo, files)
    assert found == [Estimate(0, 5000)], "what the parent snapshot has unchanged is not new"
    assert opened == [b"c"], "when it was stored"


def test_what_is_excluded_or_left_out_takes_no_room(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "big.tmp").write_bytes(bytes(100_000))
    (files / "a").write_bytes(b"12345")
    os.link(files / "a", files / "b")
    with_room(monkeypatch, repo, 10)
    with asked(monkeypatch) as found:
        store(repo, files, repo.path.parent / "files", excludes=(b"*.tmp",))
    assert found == [Estimate(0, 5)]


def test_only_the_lower_estimate_refuses(repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB that are known, 10 MB that are zeros or text, 10 MB of noise: no more than the noise is sure to be new."""
    known, noise = os.urandom(10 * MIB), os.urandom(10 * MIB)
    (files / "known").write_bytes(known)
    store(repo, files)
    (files / "known").rename(files / "renamed")
    (files / "noise").write_bytes(noise)
    (files / "text").write_bytes(b"many words, and always the same ones\n" * 200_000)
    (files / "zeros").write_bytes(bytes(4 * MIB))
    with_room(monkeypatch, repo, 12 * MIB)
    with asked(monkeypatch) as found:
        store(repo, files)
    (one,) = found
    assert one is not None
    assert one.upper_bytes == sum(path.stat().st_size for path in files.iterdir())
    assert 2 * MIB < one.lower_bytes <= 10.5 * MIB


def test_a_refusal_stores_nothing_and_says_what_is_needed(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "noise").write_bytes(os.urandom(20 * MIB))
    chunks = sum(info.records for info in repo.store.packs())
    with_room(monkeypatch, repo, 1 * MIB)
    with pytest.raises(NoSpaceError, match=r"^Insufficient storage: 1\.0 MB available, need 21\.0 MB\. ") as refused:
        store(repo, files)
    assert refused.value.exit_code == 28 and refused.value.needed_bytes == 20 * MIB
    assert sum(info.records for info in repo.store.packs()) == chunks and repo.snapshots.present() == []
    request = CreateRequest([os.fsencode(files)], None, Excludes(), estimate=False)
    told = Told()
    assert create_snapshot(repo, request, told, told).slot.totals.content_bytes == 20 * MIB


def test_copies_in_the_source_do_not_refuse(repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten copies of one file look new in every sample, and are stored once; beside what is known they weigh no more."""
    data, known = os.urandom(3 * MIB), os.urandom(2 * MIB)
    (files / "known").write_bytes(known)
    store(repo, files)
    (files / "known").rename(files / "renamed")
    for turn in range(10):
        (files / f"copy-{turn}").write_bytes(data)
        (files / f"d{turn}").mkdir()
        (files / f"d{turn}" / "small").write_bytes(data[: 200 * KIB])
    with_room(monkeypatch, repo, 4 * MIB)
    with asked(monkeypatch) as found:
        created, _ = store(repo, files)
    (one,) = found
    assert one is not None and one.upper_bytes == 32 * MIB + 2000 * KIB
    assert one.lower_bytes <= created.stored_bytes + 200 * KIB < 4 * MIB


def test_what_recovery_can_free_counts_as_room(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch, clock: SetClock
) -> None:
    (files / "old").write_bytes(os.urandom(20 * MIB))
    old, _ = store(repo, files)
    repo.delete(old.slot)
    (files / "old").unlink()
    (files / "new").write_bytes(os.urandom(15 * MIB))
    with_room(monkeypatch, repo, 1 * MIB)
    created, _ = store(repo, files)
    assert created.slot.totals.content_bytes == 15 * MIB


def little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan that runs ahead comes soon to what it may keep."""
    monkeypatch.setattr(estimate, "AHEAD_DIRECTORIES", 2)


def many_directories(files: Path) -> None:
    for number in range(6):
        (files / f"d{number}").mkdir()
        (files / f"d{number}" / "file").write_bytes(os.urandom(1000 + number))


def test_more_than_can_be_kept_is_summed_up_by_size(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_directories(files)
    little_is_kept(monkeypatch)
    with_room(monkeypatch, repo, 6100)
    with asked(monkeypatch) as found:
        created, told = store(repo, files)
    assert found == [None] and created.changed_files == 6 and told.done_files == 6


def test_what_was_told_before_the_doubt_is_stored_once(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Excluded bytes make the sizes too large, so that a scan of its own counts; the first goes on where it was."""
    many_directories(files)
    (files / "big.tmp").write_bytes(bytes(100_000))
    little_is_kept(monkeypatch)
    with_room(monkeypatch, repo, 6100)
    with asked(monkeypatch) as found:
        created, told = store(repo, files, excludes=(b"*.tmp",))
    assert found == [Estimate(0, 6015)]
    assert created.changed_files == 6 and created.counts.files == 6 and told.done_files == 6
    assert names_in(repo, created.slot, files) == [f"d{number}" for number in range(6)]
    assert open_below(files) == []


def test_a_refusal_closes_what_ran_ahead(repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many_directories(files)
    (files / "noise").write_bytes(os.urandom(4 * MIB))
    little_is_kept(monkeypatch)
    with_room(monkeypatch, repo, 1 * MIB)
    with pytest.raises(NoSpaceError):
        store(repo, files)
    assert open_below(files) == []


def test_a_parent_that_is_damaged_further_down_is_done_without(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_directories(files)
    first, _ = store(repo, files)
    segments = repo.reader.scan_segments
    deep = listing_of(repo, first.slot, files / "d3")

    def damaged(ref: DirRef) -> Iterator[Segment]:
        if ref == deep:
            raise DamagedError("record 17 is damaged")
        return segments(ref)

    monkeypatch.setattr(repo.reader, "scan_segments", damaged)
    with_room(monkeypatch, repo, 7000)
    with asked(monkeypatch) as found:
        created, told = store(repo, files)
    assert found == [Estimate(0, 6015)], "of everything: nothing counts as known"
    assert created.parent is None and created.changed_files == 6
    assert len(told.notes) == 1 and "every file is read again" in told.notes[0]
    assert open_below(files) == []


def test_sizes_are_summed_up_until_there_is_too_much(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_bytes(bytes(100))
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "file").write_bytes(bytes(1000))
    (tmp_path / "single").write_bytes(bytes(10))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "mnt")
    link = len(os.readlink(tmp_path / "a" / "link"))
    asked_of: list[int] = []

    def fits(limit: int, *paths: Path, left_out: frozenset[bytes] = frozenset(), alone: bool = True) -> bool:
        def ask(nbytes: int) -> bool:
            asked_of.append(nbytes)
            return nbytes <= limit

        named = [os.fsencode(path) for path in paths]
        return sizes_fit(named, ask, left_out=left_out, one_file_system=alone, pulse=lambda: None)

    total = 1110 + link
    assert fits(total, tmp_path) and not fits(total - 1, tmp_path), "symlinks are what they are"
    assert fits(total - 1000, tmp_path, left_out=frozenset([os.fsencode(tmp_path / "mnt")]))
    assert fits(110, tmp_path / "a" / "deep", tmp_path / "single", tmp_path / "missing", alone=False)
    asked_of.clear()
    assert not fits(5, tmp_path / "single", tmp_path / "mnt")
    assert asked_of == [10, 10], "nothing is walked once there is too much"


def test_an_interrupt_ends_the_estimating(repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "noise").write_bytes(os.urandom(20 * MIB))
    with_room(monkeypatch, repo, 1 * MIB)

    def advance(self: Told, done_bytes: int, done_files: int) -> None:
        raise InterruptedByUserError("Interrupted.")

    monkeypatch.setattr(Told, "advance", advance)
    with pytest.raises(InterruptedByUserError):
        store(repo, files)
    assert open_below(files) == []


def test_a_sample_in_the_middle_of_a_file_finds_what_is_known(repo: Repository, files: Path) -> None:
    """Wherever a window begins, its chunks are soon those of the whole file."""
    data = noise(1, 40 * MIB)
    (files / "large").write_bytes(data)
    store(repo, files)
    (files / "other").write_bytes(data[: 20 * MIB] + noise(2, 20 * MIB))
    sampler, told = Sampler(repo), Told()
    places = [Place(os.fsencode(files / "other"), offset) for offset in (0, 7_654_321, 15 * MIB)]
    assert sampler.shares(places, told) == [0.0, 0.0, 0.0]
    places = [Place(os.fsencode(files / "other"), offset) for offset in (27_654_321, 40 * MIB - 1)]
    assert all(share > 0.99 for share in sampler.shares(places, told))
    missing = Place(os.fsencode(files / "missing"), 5)
    assert sampler.shares([missing, Place(os.fsencode(files), 0)], told) == []


def test_what_may_be_a_copy_counts_once(tmp_path: Path) -> None:
    """Small files of one size and name; large ones of one size that hold the same in the middle."""
    counter = Counter()
    for path, size in ((b"/a/note", 100), (b"/b/note", 100), (b"/b/memo", 100), (b"/a/note", 101), (b"/empty", 0)):
        counter.add(path, size)
    assert (counter.upper_bytes, counter.distinct_bytes) == (401, 301)
    counter = Counter()
    data = os.urandom(2 * MIB)
    contents = {"one": data, "copy": data, "other": os.urandom(2 * MIB), "longer": data + b"x"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        counter.add(os.fsencode(tmp_path / name), len(content))
    counter.add(os.fsencode(tmp_path / "missing"), 2 * MIB)
    counter.add(os.fsencode(tmp_path / "missing too"), 2 * MIB)
    assert counter.upper_bytes == 12 * MIB + 1
    assert counter.distinct_bytes == 8 * MIB + 1, "what cannot be read is told later, and counts once"


def test_many_large_files_of_one_size_are_refused_as_one_would_be(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turn in range(8):
        (files / f"part-{turn}").write_bytes(os.urandom(2 * MIB))
    with_room(monkeypatch, repo, 8 * MIB)
    with pytest.raises(NoSpaceError, match=r"available, need 16\.8 MB\."):
        store(repo, files)


def test_held_bytes_counts_each_file_system_once(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    here = os.statvfs(tmp_path)
    used = (here.f_blocks - here.f_bfree) * here.f_frsize
    alone = held_bytes([os.fsencode(tmp_path), os.fsencode(tmp_path / "x")], below=False)
    assert alone is not None and abs(alone - used) < 5 * GB  # others write, too
    table = tmp_path / "mountinfo"
    line = "36 35 98:0 / {} rw - ext4 /dev/x rw\n"
    table.write_text(
        line.format("/dev/shm") + line.format("/proc") + line.format(str(tmp_path / "x").replace(" ", "\\040"))
    )
    assert held_bytes([b"/dev"], below=True, table=str(table)) is not None
    assert held_bytes([os.fsencode(tmp_path)], below=True, table=str(tmp_path / "missing")) is None
    assert held_bytes([os.fsencode(tmp_path / "missing")], below=False) is None


def test_the_mountpoint_is_named() -> None:
    assert mountpoint_of(b"/proc/self/fd") == b"/proc"
    assert mountpoint_of(b"/proc/missing/deeper") == b"/proc"
    assert mountpoint_of(b"/") == b"/"


def test_two_gib_stay_free_on_a_real_volume(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repo.space, "room", lambda: Room(100 * GIB, 10 * GIB))
    assert estimate.usable_now_bytes(repo) == 8 * GIB
    repo.space.release(100 * KIB)
    assert estimate.usable_now_bytes(repo) < 8 * GIB
    repo.space.restore()
