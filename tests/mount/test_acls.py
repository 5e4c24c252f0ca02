"""POSIX ACLs in `live` and in snapshots: set and read by the usual tools, inherited, changed by chmod, and enforced."""

import os
import stat
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, attempt, python, run

pytestmark = pytest.mark.mount

ANNA = 12_001
BERT = 12_002
TEAM = 12_100


def setfacl(*arguments: str | Path) -> None:
    run(["setfacl", *arguments])


def acl(path: Path) -> set[str]:
    """The lines of getfacl, numeric, without comments."""
    text = run(["getfacl", "--absolute-names", "--numeric", "--omit-header", "--no-effective", path])
    return set(text.split())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def read(path: Path, uid: int, gid: int | None = None) -> str:
    return attempt("open(sys.argv[1]).read()", path, uid=uid, gid=gid)


def test_a_named_user_and_group_are_let_in_and_out(place: Path) -> None:
    path = place / "file"
    path.write_text("for some")
    path.chmod(0o600)
    assert read(path, ANNA) == "EACCES"
    setfacl("-m", f"u:{ANNA}:r,g:{TEAM}:r", path)
    assert acl(path) == {
        "user::rw-",
        f"user:{ANNA}:r--",
        "group::---",
        f"group:{TEAM}:r--",
        "mask::r--",
        "other::---",
    }
    assert mode(path) == 0o640
    assert read(path, ANNA) == "ok"
    assert read(path, BERT, TEAM) == "ok"
    assert read(path, BERT) == "EACCES"
    assert attempt("open(sys.argv[1], 'a')", path, uid=ANNA) == "EACCES"
    path.chmod(0o644)
    setfacl("-m", f"u:{BERT}:-", path)
    assert read(path, BERT) == "EACCES", "a named user without rights is kept out of what others may read"
    setfacl("-b", path)
    assert acl(path) == {"user::rw-", "group::---", "other::r--"}
    assert read(path, BERT) == "ok"


def test_chmod_changes_the_mask_and_thereby_what_named_ones_may(place: Path) -> None:
    path = place / "file"
    path.write_text("x")
    setfacl("-m", f"u:{ANNA}:rw,g::r", path)
    assert mode(path) == 0o664
    path.chmod(0o620)
    assert "mask::-w-" in acl(path) and f"user:{ANNA}:rw-" in acl(path)
    assert read(path, ANNA) == "EACCES"
    path.chmod(0o644)
    assert "mask::r--" in acl(path) and "group::r--" in acl(path)
    assert read(path, ANNA) == "ok"
    assert attempt("open(sys.argv[1], 'a')", path, uid=ANNA) == "EACCES"
    path.chmod(0o4664)
    assert attempt("open(sys.argv[1], 'a')", path, uid=ANNA) == "ok"
    setfacl("-m", "m::r,o::-", path)
    assert mode(path) & 0o777 == 0o640


def test_an_acl_that_says_no_more_than_the_mode_becomes_the_mode(place: Path) -> None:
    path = place / "file"
    path.touch()
    setfacl("--set", "u::rwx,g::rx,o::-", path)
    assert mode(path) == 0o750
    assert "system.posix_acl_access" not in os.listxattr(path)


def test_default_acls_are_inherited(place: Path) -> None:
    (place / "dir").mkdir()
    setfacl("-m", f"d:u:{ANNA}:rwx,d:g::rx,d:o::-", place / "dir")
    os.umask(0)
    (place / "dir" / "file").write_text("inherited")
    (place / "dir" / "sub").mkdir()
    assert f"user:{ANNA}:rwx" in acl(place / "dir" / "file")
    assert "mask::rw-" in acl(place / "dir" / "file"), "the creator asked for rw-rw-rw-"
    assert "other::---" in acl(place / "dir" / "file")
    assert {f"user:{ANNA}:rwx", f"default:user:{ANNA}:rwx", "default:other::---"} <= acl(place / "dir" / "sub")
    assert mode(place / "dir" / "sub") & 0o007 == 0
    (place / "dir" / "sub" / "below").mkdir()
    assert f"default:user:{ANNA}:rwx" in acl(place / "dir" / "sub" / "below")
    os.mkfifo(place / "dir" / "fifo")
    assert f"user:{ANNA}:rwx" in acl(place / "dir" / "fifo")
    os.symlink("x", place / "dir" / "link")
    assert os.listxattr(place / "dir" / "link", follow_symlinks=False) == []
    setfacl("-m", f"u:{ANNA}:x", place / "dir")
    assert read(place / "dir" / "file", ANNA) == "ok"
    assert read(place / "dir" / "file", BERT) == "EACCES"
    setfacl("-k", place / "dir")
    os.umask(0o022)
    (place / "dir" / "later").touch()
    assert acl(place / "dir" / "later") == {"user::rw-", "group::r--", "other::r--"}


def test_a_default_acl_stands_in_for_the_umask(place: Path) -> None:
    """As on a local disk, where a directory's default ACL takes the umask's place (acl(5), umask(2))."""
    (place / "dir").mkdir()
    setfacl("-m", f"d:u:{ANNA}:rw,d:g::rw,d:o::r", place / "dir")
    python("os.umask(0o077); open(sys.argv[1], 'x')", place / "dir" / "file")
    assert acl(place / "dir" / "file") == {
        "user::rw-",
        f"user:{ANNA}:rw-",
        "group::rw-",
        "mask::rw-",
        "other::r--",
    }


def test_nonsense_is_refused(place: Path) -> None:
    setfacl("-m", "d:u::rw", place)
    path = place / "file"
    path.touch()
    name = "system.posix_acl_access"
    assert attempt(f"os.setxattr(sys.argv[1], {name!r}, {b'nonsense'!r})", path) == "ENOTSUP"
    for value in (b"", b"\2\0\0\0\1", b"\2\0\0\0" + b"\1\0\7\0\xff\xff\xff\xff"):
        assert attempt(f"os.setxattr(sys.argv[1], {name!r}, {value!r})", path) == ("EINVAL" if value else "ok")
        assert mode(path) == 0o644
    default = os.getxattr(path.parent, "system.posix_acl_default")
    assert attempt(f"os.setxattr(sys.argv[1], 'system.posix_acl_default', {default!r})", path) == "EACCES"


def test_another_user_may_not_change_acls(place: Path) -> None:
    path = place / "file"
    path.write_text("x")
    setfacl("-m", f"u:{ANNA}:rw", path)
    value = os.getxattr(path, "system.posix_acl_access")
    call = f"os.setxattr(sys.argv[1], 'system.posix_acl_access', {value!r})"
    assert attempt(call, path, uid=ANNA) == "EPERM"
    os.chown(path, ANNA, ANNA)
    assert attempt(call, path, uid=ANNA) == "ok"


def test_acls_hold_in_snapshots_and_after_a_remount(mount: Mounted) -> None:
    (mount.live / "dir").mkdir()
    setfacl("-m", f"u:{ANNA}:rx,d:u:{ANNA}:rwx", mount.live / "dir")
    (mount.live / "dir" / "file").write_text("x")
    setfacl("--set", f"u::rw,u:{ANNA}:r,g::-,o::-,m::r", mount.live / "dir" / "file")
    expected = [acl(mount.live / name) for name in ("dir", "dir/file")]
    snapshot = mount.commit("kept")
    setfacl("-R", "-b", mount.live / "dir")
    assert [acl(snapshot / name) for name in ("dir", "dir/file")] == expected
    assert read(snapshot / "dir" / "file", ANNA) == "ok"
    assert read(snapshot / "dir" / "file", BERT) == "EACCES"
    mount.remount()
    assert [acl(snapshot / name) for name in ("dir", "dir/file")] == expected
    assert read(snapshot / "dir" / "file", ANNA) == "ok"
    assert read(snapshot / "dir" / "file", BERT) == "EACCES"
