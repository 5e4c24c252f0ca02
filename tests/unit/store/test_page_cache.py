"""What was stored leaves the page cache to the files that people use."""

from pathlib import Path

from repository.format.pack import Stream, pack_path
from repository.format.record import RecordKind
from repository.units import KIB
from tests.support.calls import Operation, RecordingCalls
from tests.support.stores import new_volume, open_store, put_noise


class HintedCalls(RecordingCalls):
    """Also puts on record what the kernel is told that it need not keep."""

    def wont_need(self, fd: int) -> None:
        super().wont_need(fd)
        self._note("wont_need", self._paths[fd])


def test_a_pack_of_large_records_leaves_the_page_cache_once_it_is_sealed(tmp_path: Path) -> None:
    calls = HintedCalls()
    volume = new_volume(tmp_path / "r", calls)
    store = open_store(volume)
    put_noise(store, range(150), 64 * KIB)
    put_noise(store, range(1000, 1200), 2 * KIB)
    put_noise(store, range(2000, 2200), 2 * KIB, RecordKind.DIR_CONTENT)
    store.close()
    again = open_store(volume, writable=False)
    with_records = [info for info in again.packs() if info.records]
    again.close()
    bulk = [f"{volume.root}/{pack_path(info.index)}" for info in with_records if info.stream is Stream.BULK]
    hinted = [operation.path for operation in calls.log if operation.name == "wont_need"]
    assert sorted(hinted) == sorted(bulk)
    assert len(with_records) > len(bulk) >= 3
    for path in bulk:
        assert _names(calls.log, path)[-2:] == ["fdatasync", "wont_need"], "what is not durable would stay"


def _names(log: list[Operation], path: str) -> list[str]:
    return [operation.name for operation in log if operation.path == path]
