"""A failing fsync of the disk under a mount: nothing more is acknowledged, and nothing before it is lost."""

import errno
import json
import os
from contextlib import AbstractContextManager

import pytest

from tests.support.mounted import Mounted, attempt, ballast, wait_until
from tests.support.strace import injected

pytestmark = [
    pytest.mark.mount,
    pytest.mark.logs(
        "store.failed", "session.failed", "round.failed", "commit.failed", "handler.failed", "mount.end_failed"
    ),
]


def failing_syncs(mount: Mounted, count: int) -> AbstractContextManager[None]:
    """The next `count` syncs that the daemon asks of the kernel fail with EIO."""
    return injected(mount, "fdatasync,fsync", f"error=EIO:when=1..{count}")


def mode(mount: Mounted) -> str:
    """As .ballast/status.json tells it."""
    found: dict[str, object] = json.loads((mount.path / ".ballast" / "status.json").read_text())
    return str(found["mode"])


def test_a_failed_fsync_stops_writing_for_good(mount: Mounted) -> None:
    promised = mount.live / "promised"
    with promised.open("wb") as file:
        file.write(b"kept" * 50_000)
        os.fsync(file.fileno())
    mount.commit("before")
    lost = mount.live / "lost"
    lost.write_bytes(b"x" * 1000)
    with failing_syncs(mount, 1):
        assert attempt("os.fsync(os.open(sys.argv[1], os.O_RDONLY))", lost) == "EIO"
    for _ in range(2):
        assert attempt("os.fsync(os.open(sys.argv[1], os.O_RDONLY))", promised) == "EIO"
        assert attempt("os.write(os.open(sys.argv[1], os.O_WRONLY), b'more')", promised) in ("EIO", "EROFS")
        assert attempt("open(sys.argv[1] + '/new', 'x')", mount.live) in ("EIO", "EROFS")
        assert attempt("os.mkdir(sys.argv[1] + '/new')", mount.snapshots) in ("EIO", "EROFS")
    assert promised.read_bytes() == b"kept" * 50_000
    assert (mount.snapshots / "before" / "promised").read_bytes() == b"kept" * 50_000
    wait_until(lambda: mode(mount) == "failed", "the status to tell of it")
    _begin_anew(mount)
    assert mode(mount) == "normal"
    assert promised.read_bytes() == b"kept" * 50_000
    promised.write_bytes(b"again")


def test_a_failed_sync_of_the_catalog_is_no_snapshot(mount: Mounted) -> None:
    (mount.live / "file").write_bytes(b"kept")
    mount.commit("before")
    (mount.live / "file").write_bytes(b"also kept")
    handle = os.open(mount.live, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    with failing_syncs(mount, 50), pytest.raises(OSError) as caught:
        mount.commit("during")
    assert caught.value.errno == errno.EIO
    assert mount.names() == ["before"]
    wait_until(lambda: mode(mount) == "failed", "the status to tell of it")
    assert attempt("os.rmdir(sys.argv[1])", mount.snapshots / "before") in ("EIO", "EROFS")
    _begin_anew(mount)
    assert (mount.live / "file").read_bytes() == b"also kept"
    assert (mount.snapshots / "before" / "file").read_bytes() == b"kept"


def _begin_anew(mount: Mounted) -> None:
    """Unmounting does not hang, and says that not all is well; mounting again finds what was promised."""
    done = ballast("umount", mount.path)
    assert done.returncode == 1 and "Safe to remove" not in done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert mount.wait() == 1
    assert ballast("check", mount.repository, "--read-data").returncode == 0
    mount.start()
