"""What `stat`, `chmod`, `chown`, `utimensat` and extended attributes do in `live`, and who may do what."""

import errno
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.mounted import CALM, Mounted, attempt, mounted, open_directory, python, run, wait_until

pytestmark = pytest.mark.mount

ANNA = 12_001
BERT = 12_002
OLDEST_NS = -(1 << 31) * 10**9 - 123_456_789
"""Before 1901: what a 32-bit time could not say."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize(
    "time_ns",
    [
        0,
        1,
        -1,
        -999_999_999,
        -1_000_000_001,
        OLDEST_NS,
        1_700_000_000_123_456_789,
        (1 << 31) * 10**9 + 1,
        (1 << 32) * 10**9 + 999_999_999,
        7_000_000_000 * 10**9 + 5,
    ],
)
def test_times_of_any_century_to_the_nanosecond(place: Path, time_ns: int) -> None:
    for path in (place / "file", place / "dir"):
        path.touch() if path.name == "file" else path.mkdir()
        os.utime(path, ns=(time_ns, time_ns + 1))
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (time_ns, time_ns + 1)


def test_times_survive_commits_and_the_kernels_memory(mount: Mounted) -> None:
    times = [0, -1, OLDEST_NS, (1 << 32) * 10**9 + 999_999_999, 7_000_000_000 * 10**9 + 5]
    for number, time_ns in enumerate(times):
        (mount.live / str(number)).touch()
        os.utime(mount.live / str(number), ns=(time_ns, time_ns))
    snapshot = mount.commit("kept")
    for root in (mount.live, snapshot):
        assert [(root / str(number)).stat().st_mtime_ns for number in range(len(times))] == times
    mount.remount()
    for root in (mount.live, snapshot):
        assert [(root / str(number)).stat().st_mtime_ns for number in range(len(times))] == times


def test_what_changes_which_time(place: Path) -> None:
    path = place / "file"
    path.write_text("x")

    def times() -> tuple[int, int, int]:
        found = path.stat()
        time.sleep(0.005)
        return found.st_mtime_ns, found.st_ctime_ns, place.stat().st_mtime_ns

    first = times()
    path.chmod(0o600)
    second = times()
    assert second[0] == first[0] and second[1] > first[1] and second[2] == first[2]
    path.write_text("longer")
    third = times()
    assert third[0] > second[0] and third[1] > second[1] and third[2] == second[2]
    os.link(path, place / "link")
    fourth = times()
    assert fourth[0] == third[0] and fourth[1] > third[1] and fourth[2] > third[2]
    os.setxattr(path, "user.x", b"y")
    fifth = times()
    assert fifth[0] == fourth[0] and fifth[1] > fourth[1] and fifth[2] == fourth[2]
    os.utime(path, None)
    sixth = times()
    assert sixth[0] > fifth[0] and abs(sixth[0] - time.time_ns()) < 60 * 10**9
    os.truncate(path, 6)
    assert times()[0] > sixth[0], "ftruncate to the same size is a change, as on ext4"


def test_permissions_are_enforced_for_another_user(place: Path) -> None:
    (place / "private").write_text("secret")
    (place / "private").chmod(0o600)
    (place / "public").write_text("known")
    (place / "anna").mkdir()
    os.chown(place / "anna", ANNA, ANNA)
    (place / "closed").mkdir(mode=0o700)
    for call, expected in (
        ("open(sys.argv[1] + '/private').read()", "EACCES"),
        ("open(sys.argv[1] + '/public').read()", "ok"),
        ("open(sys.argv[1] + '/public', 'a')", "EACCES"),
        ("open(sys.argv[1] + '/new', 'w')", "EACCES"),
        ("os.unlink(sys.argv[1] + '/public')", "EACCES"),
        ("os.listdir(sys.argv[1] + '/closed')", "EACCES"),
        ("os.chmod(sys.argv[1] + '/public', 0o777)", "EPERM"),
        ("os.chown(sys.argv[1] + '/anna', 0, 0)", "EPERM"),
        ("open(sys.argv[1] + '/anna/file', 'w').write('mine')", "ok"),
        ("os.setxattr(sys.argv[1] + '/anna/file', 'user.note', b'x')", "ok"),
        ("os.setxattr(sys.argv[1] + '/public', 'user.note', b'x')", "EACCES"),
        ("os.setxattr(sys.argv[1] + '/anna/file', 'trusted.note', b'x')", "EPERM"),
        ("os.mknod(sys.argv[1] + '/anna/device', 0o20600, os.makedev(1, 3))", "EPERM"),
    ):
        assert attempt(call, place, uid=ANNA) == expected, call
    assert (place / "anna" / "file").stat().st_uid == ANNA
    assert (place / "public").read_text() == "known"


def test_the_sticky_bit_protects_from_others(place: Path) -> None:
    (place / "shared").mkdir()
    (place / "shared").chmod(0o1777)
    write = "open(sys.argv[1] + '/shared/anna', 'w').write('mine')"
    assert attempt(write, place, uid=ANNA) == "ok"
    assert attempt("os.unlink(sys.argv[1] + '/shared/anna')", place, uid=BERT) == "EPERM"
    assert attempt("os.rename(sys.argv[1] + '/shared/anna', sys.argv[1] + '/shared/x')", place, uid=BERT) == "EPERM"
    assert attempt("os.unlink(sys.argv[1] + '/shared/anna')", place, uid=ANNA) == "ok"


def test_a_setgid_directory_hands_its_group_on(place: Path) -> None:
    (place / "team").mkdir()
    os.chown(place / "team", ANNA, 777)
    (place / "team").chmod(0o2770)
    attempt("os.makedirs(sys.argv[1] + '/team/sub/below')", place, uid=ANNA)
    attempt("open(sys.argv[1] + '/team/sub/file', 'w')", place, uid=ANNA)
    assert (place / "team" / "sub" / "file").stat().st_gid == 777
    assert (place / "team" / "sub" / "below").stat().st_gid == 777
    assert mode(place / "team" / "sub" / "below") & stat.S_ISGID
    assert not mode(place / "team" / "sub" / "file") & stat.S_ISGID


@pytest.mark.parametrize(
    "call",
    [
        "open(sys.argv[1], 'ab').write(b'x')",
        "os.truncate(sys.argv[1], 1)",
        "os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'x', 0)",
    ],
)
def test_writing_clears_setuid_and_setgid(place: Path, call: str) -> None:
    path = place / "program"
    path.write_bytes(b"#!/bin/true")
    os.chown(path, ANNA, ANNA)
    path.chmod(0o6755)
    assert mode(path) == 0o6755
    assert attempt(call, path, uid=ANNA) == "ok"
    assert mode(path) == 0o755


def test_chown_clears_setuid_but_not_that_of_directories(place: Path) -> None:
    (place / "program").touch()
    (place / "program").chmod(0o6755)
    os.chown(place / "program", ANNA, BERT)
    assert mode(place / "program") == 0o755
    (place / "dir").mkdir()
    (place / "dir").chmod(0o2755)
    os.chown(place / "dir", ANNA, BERT)
    assert mode(place / "dir") == 0o2755
    (place / "locked").touch()
    (place / "locked").chmod(0o2644)
    os.chown(place / "locked", ANNA, -1)
    assert mode(place / "locked") == 0o2644, "setgid without group execution is no privilege"


def test_writing_and_chown_clear_file_capabilities(place: Path) -> None:
    path = place / "program"
    path.write_bytes(b"\x7fELF")
    for change in ("write", "chown"):
        run(["setcap", "cap_net_raw+ep", path])
        assert "cap_net_raw" in run(["getcap", path])
        if change == "write":
            with path.open("ab") as file:
                file.write(b"x")
        else:
            os.chown(path, ANNA, ANNA)
        assert run(["getcap", path]) == "", change


def test_extended_attributes(shared: Mounted, place: Path) -> None:
    path = place / "file"
    path.touch()
    values = {
        "user.empty": b"",
        "user.small": b"\0\xff text",
        "user." + "n" * 250: b"long name",
        "user.large": bytes(range(256)) * 255,
        "trusted.overlay": b"root's",
        "security.selinux": b"label\0",
    }
    for name, value in values.items():
        os.setxattr(path, name, value)
    for _ in range(2):
        assert set(os.listxattr(path)) >= set(values)
        assert {name: os.getxattr(path, name) for name in values} == values
        shared.settle()
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.small", b"x", os.XATTR_CREATE)
    os.setxattr(path, "user.small", b"replaced", os.XATTR_REPLACE)
    for call in (
        lambda: os.setxattr(path, "user.none", b"x", os.XATTR_REPLACE),
        lambda: os.getxattr(path, "user.none"),
        lambda: os.removexattr(path, "user.none"),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENODATA
    os.removexattr(path, "user.large")
    assert "user.large" not in os.listxattr(path)
    assert os.getxattr(path, "user.small") == b"replaced"
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.huge", bytes(65_537))
    assert caught.value.errno == errno.E2BIG
    os.mkdir(place / "dir")
    os.setxattr(place / "dir", "user.dir", b"too")
    os.symlink("x", place / "link")
    os.setxattr(place / "link", "trusted.link", b"too", follow_symlinks=False)
    assert os.getxattr(place / "link", "trusted.link", follow_symlinks=False) == b"too"


def test_fifos_sockets_and_devices(mount: Mounted) -> None:
    live = mount.live
    os.mkfifo(live / "fifo", 0o640)
    python("import socket; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", live / "socket")
    os.mknod(live / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(live / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 1_000_003 % (1 << 20)))
    os.mknod(live / "plain", stat.S_IFREG | 0o604)
    with subprocess.Popen(["cat", str(live / "fifo")], stdout=subprocess.PIPE) as reader:
        (live / "fifo").write_bytes(b"through the pipe")
        assert reader.communicate()[0] == b"through the pipe"
    snapshot = mount.commit("kept")
    mount.remount()
    for root in (live, snapshot):
        assert stat.S_ISFIFO((root / "fifo").lstat().st_mode) and mode(root / "fifo") == 0o640
        assert stat.S_ISSOCK((root / "socket").lstat().st_mode)
        assert stat.S_ISCHR((root / "null").lstat().st_mode)
        assert (root / "null").lstat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISBLK((root / "disk").lstat().st_mode)
        assert (root / "disk").lstat().st_rdev == os.makedev(259, 1_000_003 % (1 << 20))
        assert stat.S_ISREG((root / "plain").lstat().st_mode) and mode(root / "plain") == 0o604


def test_statfs_says_what_data_may_use(shared: Mounted) -> None:
    others = 64 << 20  # what other programs may take between the two looks
    below = os.statvfs(shared.repository)
    found = os.statvfs(shared.live)
    assert found.f_namemax == 255
    assert found.f_bavail == found.f_bfree, "nothing is kept for root"
    assert 0 < found.f_bavail * found.f_frsize <= below.f_bavail * below.f_frsize + others
    assert found.f_blocks >= found.f_bavail
    assert found.f_files > found.f_ffree or found.f_ffree > 1_000_000
    assert str(shared.path) in run(["df", shared.live])


def test_a_quota_bounds_what_statfs_promises() -> None:
    with open_directory() as directory, mounted(directory, CALM, ("--reserve", "20M", "--quota", "200M")) as mount:
        found = os.statvfs(mount.live)
        assert 0 < found.f_bavail * found.f_frsize <= 180_000_000
        assert found.f_blocks * found.f_frsize <= 200_000_000
        (mount.live / "file").write_bytes(os.urandom(50_000_000))
        # Not at once: an answer serves for a second.
        wait_until(lambda: os.statvfs(mount.live).f_bavail <= found.f_bavail - 10_000, "less room", 5.0)
        mount.umount()
