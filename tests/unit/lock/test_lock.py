"""One writer at a time, told by name; readers need nothing."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from repository.errors import LockedError, ReadOnlyError
from repository.lock import LOCK_BYTES, Holder, WriteLock, current_holder, decode_holder
from repository.repo import Repository
from repository.storage.volume import Volume
from tests.support.repositories import SetClock, open_for_reading, open_for_writing, publish


def test_the_second_writer_is_told_who_is_there(path: Path) -> None:
    clock = SetClock()
    with open_for_writing(path, clock) as repository:
        repository.marks.mounted("/mnt/x")
        with pytest.raises(LockedError, match=r"Process \d+ has been writing .* since .*, mounted at /mnt/x") as caught:
            open_for_writing(path, clock)
        assert caught.value.exit_code == 11
        with open_for_reading(path, clock) as reader:
            mount = reader.status().to_json()["mount"]
            assert isinstance(mount, dict)
            assert mount["mountpoint"] == "/mnt/x"
        repository.marks.unmounted()
    open_for_writing(path, clock).close()
    with open_for_reading(path, clock) as reader:
        assert reader.status().to_json()["mount"] is None


def test_a_killed_writer_leaves_no_lock(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from repository.repo import Repository\n"
        "Repository.open(Path(sys.argv[1]), writable=True)\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert current_holder(Volume(path)) is None
    open_for_writing(path, SetClock()).close()


def test_looking_who_writes_does_not_turn_a_writer_away(path: Path) -> None:
    volume, clock = Volume(path), SetClock()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            current_holder(volume)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(30):
            WriteLock.take(volume, clock).release()
    finally:
        stop.set()
        looker.join()


def test_a_reader_cannot_change_anything(path: Path) -> None:
    clock = SetClock()
    with open_for_writing(path, clock) as repository:
        slot = publish(repository, {"f": b"x"}, "a")
    with open_for_reading(path, clock) as reader:
        for change in (reader.delete, reader.pin, lambda one: reader.rename(one, "b")):
            with pytest.raises(ReadOnlyError):
                change(slot)
        with pytest.raises(ReadOnlyError):
            reader.gc()


def test_a_reader_beside_a_writer(path: Path) -> None:
    clock = SetClock()
    with open_for_writing(path, clock) as repository, open_for_reading(path, clock) as reader:
        publish(repository, {"f": b"x" * 1000}, "a")
        assert reader.listed() == []
        reader.refresh()
        assert [slot.name for slot in reader.listed()] == ["a"]
        assert reader.check(read_data=True).is_sound


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"null", b'{"pid": "x"}', b"\xff" * LOCK_BYTES])
def test_a_description_that_makes_no_sense_is_nobody(data: bytes) -> None:
    assert decode_holder(data) == Holder()


def test_descriptions_fit(path: Path) -> None:
    holder = Holder("h" * 64, "b" * 36, 2**22, 2**62, "ä" * 300)
    assert decode_holder(holder.encode()) == holder
    assert len(holder.encode()) == LOCK_BYTES
    with Repository.open(path, writable=True) as repository:
        repository.marks.mounted("/x" * 3000)
        assert repository.lock is not None
        assert repository.lock.holder.mountpoint is None
