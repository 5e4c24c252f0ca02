"""`ballast` as a person or a script uses it: every command, its exit codes, its JSON."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest

from repository.format.catalog import SnapshotKind
from repository.format.pack import pack_path
from repository.ids import pack_of
from repository.locate import locate
from repository.lock import WriteLock
from repository.repo import Repository
from repository.storage.calls import SystemClock
from repository.storage.volume import Volume
from tests.support.repositories import SetClock, write_tree

Json = dict[str, object]


class Run(Protocol):
    """The fixture `run`: exit code, standard output, standard error."""

    def __call__(self, *words: object) -> tuple[int, str, str]: ...


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def repo(tmp_path: Path, run: Run) -> Path:
    code, _, _ = run("init", tmp_path / "repo", "--reserve", "1M", "--headspace", "0", "--quota", "200MiB")
    assert code == 0
    return tmp_path / "repo"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / "a").write_bytes(b"one")
    (directory / "sub").mkdir()
    (directory / "sub" / "b").write_bytes(os.urandom(300_000))
    return directory


def loaded(out: str) -> Json:
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def listed(run: Run, repo: Path, *words: str) -> list[Json]:
    code, out, _ = run("snapshot", "list", repo, "--json", *words)
    assert code == 0
    documents = json.loads(out)
    assert isinstance(documents, list)
    return documents


def test_the_life_of_a_repository(run: Run, tmp_path: Path, files: Path) -> None:
    repo = tmp_path / "repo"
    code, out, err = run("init", repo, "--reserve", "1M", "--headspace", "0", "--json")
    assert (code, err) == (0, "")
    assert set(loaded(out)) == {
        "path", "id", "volume_class", "reserve_bytes", "headspace_bytes", "quota_bytes",
    }  # fmt: skip
    code, out, err = run("snapshot", "create", repo, files, "--name", "first", "--json")
    assert (code, err) == (0, "")
    created = loaded(out)
    assert (created["name"], created["kind"], created["files"], created["problems"]) == ("first", "named", 2, 0)
    assert TIME.fullmatch(str(created["time"])) and created["changed_files"] == 2
    (files / "a").write_bytes(b"two")
    (files / "new").write_bytes(os.urandom(5000))
    code, out, _ = run("snapshot", "create", repo, files)
    assert code == 0 and "2 files new or changed" in out

    first, second = listed(run, repo)
    assert set(first) == {
        "id", "name", "time", "source", "kind", "pinned", "files", "content_bytes", "unique_bytes",
    }  # fmt: skip
    assert (first["kind"], second["kind"]) == ("named", "implicit")
    code, out, _ = run("snapshot", "list", repo)
    assert code == 0 and len(out.splitlines()) == 3 and "first" in out

    what = f"first:{files}", f"{second['name']}:{files}"
    code, out, _ = run("snapshot", "diff", repo, *what)
    assert (code, out) == (0, "M a\nA new\n")
    code, out, _ = run("snapshot", "diff", repo, *what, "--json")
    changes = json.loads(out)
    assert [(one["change"], one["path"], one["content"]) for one in changes] == [
        ("modified", "a", True), ("added", "new", True),
    ]  # fmt: skip
    code, out, _ = run("snapshot", "diff", repo, what[0], what[0], "--json")
    assert json.loads(out) == []

    code, out, _ = run("restore", repo, what[0], tmp_path / "out", "--json")
    assert code == 0 and loaded(out)["files"] == 2
    assert (tmp_path / "out" / "a").read_bytes() == b"one"
    code, _, err = run("restore", repo, what[1], tmp_path / "out")
    assert code == 1 and "--merge or --overwrite" in err and len(err.splitlines()) == 1
    code, _, err = run("restore", repo, what[1], tmp_path / "out", "--merge")
    assert code == 3 and err.startswith("a: another file stands there")
    code, _, _ = run("restore", repo, what[1], tmp_path / "out", "--overwrite")
    assert code == 0 and (tmp_path / "out" / "a").read_bytes() == b"two"

    code, out, _ = run("snapshot", "pin", repo, "first", "--json")
    assert code == 0 and json.loads(out)[0]["pinned"] is True
    code, _, err = run("snapshot", "delete", repo, "first")
    assert code == 1 and "unpin it first" in err
    code, _, _ = run("snapshot", "unpin", repo, "first")
    assert code == 0
    code, out, _ = run("snapshot", "rename", repo, "first", "oldest", "--json")
    assert code == 0 and loaded(out)["name"] == "oldest"

    code, out, _ = run("snapshot", "delete", repo, "oldest", str(second["name"]), "--dry-run", "--json")
    dry = loaded(out)
    assert code == 0 and len(listed(run, repo)) == 2
    code, out, _ = run("snapshot", "delete", repo, "oldest", second["name"], "--json")
    assert code == 0 and loaded(out)["freed_bytes"] == dry["freed_bytes"]
    assert isinstance(dry["freed_bytes"], int) and dry["freed_bytes"] > 300_000
    assert listed(run, repo) == []
    trash = listed(run, repo, "--trash")
    assert {one["name"] for one in trash} == {"oldest", second["name"]}
    assert all(TIME.fullmatch(str(one["deleted"])) and TIME.fullmatch(str(one["until"])) for one in trash)
    code, out, _ = run("snapshot", "undelete", repo, "oldest", "--name", "back", "--json")
    assert code == 0 and json.loads(out)[0]["name"] == "back"
    code, out, _ = run("snapshot", "list", repo, "--trash")
    assert code == 0 and len(out.splitlines()) == 2

    code, out, _ = run("gc", repo, "--safety", "none", "--dry-run", "--json")
    assert code == 0
    code, out, _ = run("gc", repo, "--safety", "none", "--json")
    assert code == 0 and loaded(out)["freed_bytes"]
    assert listed(run, repo, "--trash") == []
    code, out, _ = run("gc", repo)
    assert code == 0

    code, out, _ = run("check", repo, "--read-data", "--json")
    assert code == 0 and loaded(out)["sound"] is True, out
    code, out, _ = run("rebuild", repo, "--json")
    assert code == 0 and loaded(out)["head_lost"] is False
    code, _, _ = run("restore", repo, f"back:{files}", tmp_path / "again")
    assert code == 0 and (tmp_path / "again" / "sub" / "b").read_bytes() == (files / "sub" / "b").read_bytes()

    code, out, _ = run("status", repo, "--json")
    status = loaded(out)
    assert code == 0 and (status["mode"], status["snapshots"], status["mount"]) == ("normal", 1, None)
    assert {
        "level", "mode", "available_bytes", "capacity_bytes", "reserve", "snapshots", "chunks", "content_bytes",
        "stored_bytes", "reclaimable_bytes", "mount", "recoveries",
    } <= set(status)  # fmt: skip
    code, out, _ = run("status", repo)
    assert code == 0 and "level" in out


def test_diff_names_renames(run: Run, repo: Path, files: Path) -> None:
    for name in ("a", "sub/b"):
        os.utime(files / name, ns=(10**18, 10**18))
    assert run("snapshot", "create", repo, files, "--name", "before")[0] == 0
    (files / "sub").rename(files / "sup")
    (files / "a").rename(files / "z")
    os.chmod(files / "z", 0o600)
    assert run("snapshot", "create", repo, files, "--name", "after")[0] == 0
    what = f"before:{files}", f"after:{files}"
    assert run("snapshot", "diff", repo, *what)[:2] == (0, "R sub/ -> sup/\nRm a -> z\n")
    code, out, _ = run("snapshot", "diff", repo, *what, "--json")
    changes = json.loads(out)
    assert code == 0 and [(one["change"], one["old_path"], one["path"]) for one in changes] == [
        ("renamed", "sub", "sup"), ("renamed", "a", "z"),
    ]  # fmt: skip
    assert set(changes[0]) == {"change", "path", "old_path", "content", "attributes", "before", "after"}


@pytest.mark.logs("record.damaged")
def test_damage_leaves_valid_json_and_names_files(run: Run, repo: Path, files: Path) -> None:
    assert run("snapshot", "create", repo, files, "--name", "before")[0] == 0
    (files / "a").unlink()
    (files / "c").write_bytes(b"new")
    assert run("snapshot", "create", repo, files, "--name", "after")[0] == 0
    with Repository.open(repo, writable=False) as opened:
        content = locate(opened, f"before:{files}/sub").inode.directory.content
        listing = locate(opened, f"after:{files}").inode.directory.content
        assert content is not None and listing is not None
        chunk = opened.reader.extents(inode := locate(opened, f"before:{files}/sub/b").inode, 0, inode.size)[0].chunk
        places = [opened.store.copies(one)[0] for one in (chunk, listing)]
    for place in places:
        with (repo / pack_path(pack_of(place.number))).open("r+b") as pack:
            pack.seek(place.offset + 70)
            byte = pack.read(1)
            pack.seek(place.offset + 70)
            pack.write(bytes((byte[0] ^ 1,)))
    code, out, err = run("snapshot", "diff", repo, "before", "after", "--json")
    assert code == 1 and isinstance(json.loads(out), list) and len(err.splitlines()) == 1
    code, out, _ = run("check", repo, "--read-data", "--json")
    report = loaded(out)
    assert code == 1 and set(report) == {
        "sound", "packs", "records", "snapshots", "read_bytes", "findings", "affected",
    }  # fmt: skip
    assert report["affected"] == [
        {"path": f"{files}/", "snapshots": ["after"], "what": "it cannot be listed to its end"},
        {
            "path": f"{files}/sub/b",
            "snapshots": ["before"],
            "what": "1 of its chunks cannot be read, the first at byte 0",
        },
    ]
    code, out, _ = run("check", repo, "--read-data")
    assert code == 1 and f"affected: {files}/sub/b in before: 1 of its chunks" in out


def test_a_pinned_snapshot_keeps_its_name_as_in_a_mount(run: Run, repo: Path, files: Path) -> None:
    assert run("snapshot", "create", repo, files, "--name", "kept")[0] == 0
    assert run("snapshot", "pin", repo, "kept")[0] == 0
    code, out, err = run("snapshot", "rename", repo, "kept", "other")
    assert (code, out) == (1, "") and "'kept' is pinned; unpin it first" in err and len(err.splitlines()) == 1
    assert run("snapshot", "rename", repo, "kept", "kept")[0] == 0, "nothing is asked for"
    assert run("snapshot", "unpin", repo, "kept")[0] == 0
    assert run("snapshot", "rename", repo, "kept", "other")[0] == 0
    assert [one["name"] for one in listed(run, repo)] == ["other"]


def test_a_provisional_snapshot_is_in_the_json_and_in_the_table_on_request(run: Run, repo: Path, files: Path) -> None:
    assert run("snapshot", "create", repo, files, "--name", "mine")[0] == 0
    clock = SetClock(2_000_000_000_000_000_000)
    with Repository.open(repo, writable=True, clock=clock) as opened, opened.store.lease() as lease:
        tree = write_tree(opened, {"f": b"x"}, lease, source="live")
        opened.publish(tree, lease, name="soon replaced", kind=SnapshotKind.PROVISIONAL)
    assert [(one["name"], one["kind"]) for one in listed(run, repo)] == [
        ("mine", "named"), ("soon replaced", "provisional"),
    ]  # fmt: skip
    assert [one["name"] for one in listed(run, repo, "--all")] == ["mine", "soon replaced"]
    code, out, _ = run("snapshot", "list", repo)
    assert code == 0 and "mine" in out and "soon replaced" not in out
    code, out, _ = run("snapshot", "list", repo, "--all")
    assert code == 0 and "soon replaced" in out and "provisional" in out


def test_a_path_that_is_left_out_makes_no_snapshot(run: Run, repo: Path, files: Path) -> None:
    for path in (repo, repo / "packs"):
        code, out, err = run("snapshot", "create", repo, path)
        assert (code, out) == (2, "") and "it lies in the repository itself" in err and len(err.splitlines()) == 1
    assert listed(run, repo) == []
    code, _, err = run("snapshot", "create", repo, files, repo)
    assert code == 3 and err == f"{repo}: it lies in the repository itself\n"


def test_the_reserve(run: Run, repo: Path, files: Path) -> None:
    code, out, _ = run("reserve", "status", repo, "--json")
    assert code == 0 and loaded(out)["whole"] is True
    code, out, _ = run("reserve", "release", repo)
    assert code == 0 and "missing" in out
    code, out, _ = run("reserve", "restore", repo, "--json")
    assert code == 0 and loaded(out)["whole"] is True


def test_no_repository_is_10(run: Run, tmp_path: Path, files: Path) -> None:
    for words in (
        ["status", tmp_path / "none"],
        ["snapshot", "list", tmp_path / "none"],
        ["snapshot", "create", tmp_path / "none", files],
        ["check", files],
        ["rebuild", files],
    ):
        code, _, err = run(*words)
        assert code == 10 and err.startswith("ballast: ") and len(err.splitlines()) == 1, words


def test_a_locked_repository_is_11_and_reading_goes_on(run: Run, repo: Path, files: Path) -> None:
    lock = WriteLock.take(Volume(repo), SystemClock())
    try:
        code, _, err = run("snapshot", "create", repo, files)
        assert code == 11 and str(os.getpid()) in err and len(err.splitlines()) == 1
        assert run("snapshot", "list", repo)[0] == 0
        assert run("status", repo)[0] == 0
        assert run("check", repo)[0] == 0
        assert run("snapshot", "rename", repo, "x", "y")[0] == 11, "locked, and no mount to ask"
        lock.describe("/mnt/backup")
        code, _, err = run("snapshot", "create", repo, files)
        assert code == 11 and "copy the files into /mnt/backup/live" in err and "ballast umount /mnt/backup" in err
    finally:
        lock.release()
    assert run("snapshot", "create", repo, files)[0] == 0


def test_what_does_not_exist_is_one_sentence(run: Run, repo: Path, tmp_path: Path) -> None:
    for words in (
        ["snapshot", "delete", repo, "none"],
        ["snapshot", "undelete", repo, "none"],
        ["snapshot", "rename", repo, "none", "new"],
        ["snapshot", "diff", repo, "none", "none"],
        ["restore", repo, "none:/x", tmp_path / "out"],
    ):
        code, out, err = run(*words)
        assert (code, out) == (1, "") and "'none'" in err and len(err.splitlines()) == 1, words
    assert not (tmp_path / "out").exists()


def test_unreadable_files_are_3_and_the_rest_is_stored(run: Run, repo: Path, files: Path) -> None:
    code, out, err = run("snapshot", "create", repo, files, files / "missing", "--json")
    assert code == 3 and loaded(out)["problems"] == 1
    assert err == f"{files}/missing: No such file or directory\n"
    code, _, err = run("snapshot", "create", repo, files / "missing")
    assert code == 2 and "cannot be stored" in err


def test_patterns_from_files(run: Run, repo: Path, files: Path, tmp_path: Path) -> None:
    (tmp_path / "patterns").write_text("# mine\n*\n!a\n")
    code, out, _ = run("snapshot", "create", repo, files, "--exclude-from", tmp_path / "patterns", "--json")
    assert code == 0 and loaded(out)["files"] == 1
    code, _, err = run("snapshot", "create", repo, files, "--exclude-from", tmp_path / "none")
    assert code == 2 and "cannot be read" in err
    code, _, err = run("snapshot", "create", repo, files, "--exclude", "/")
    assert code == 2 and "not a pattern" in err


def test_an_unexpected_error_is_one_line_and_its_story_in_a_log(
    run: Run, repo: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setenv("XDG_STATE_HOME", str(elsewhere))
    monkeypatch.setattr("fusefs.cli.status.run", broken)
    code, out, err = run("status", repo)
    assert (code, out) == (1, "") and "nobody thought of this" in err and len(err.splitlines()) == 1
    log = elsewhere / "ballast" / "last-error.log"
    assert str(log) in err and "RuntimeError" in log.read_text()


def ballast(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fusefs.cli.main", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_create_is_130_and_the_next_goes_on(
    run: Run, repo: Path, tmp_path: Path, number: signal.Signals
) -> None:
    big = tmp_path / "big"
    big.mkdir()
    os.mkfifo(big / "a-fifo")
    for index in range(40):
        (big / f"f{index:02}").write_bytes(os.urandom(2_000_000))
    process = ballast("snapshot", "create", repo, big)  # with workers, where there are two processors
    packs = repo / "packs"
    deadline = time.monotonic() + 30
    while sum(pack.stat().st_blocks for pack in packs.rglob("*.pack")) < 20_000 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, number)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and len(err.splitlines()) == 1, err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert listed(run, repo) == []
    code, out, _ = run("snapshot", "create", repo, big, "--json")
    stored = loaded(out)["stored_bytes"]
    assert code == 0 and isinstance(stored, int) and stored < 75_000_000, "what was stored before is found again"
    assert run("check", repo, "--read-data")[0] == 0


def test_a_reader_that_goes_away_is_no_error(repo: Path, run: Run, files: Path) -> None:
    for index in range(3000):
        (files / f"a-rather-long-name-{index}").touch()
    assert run("snapshot", "create", repo, files, "--name", "many")[0] == 0
    assert run("snapshot", "create", repo, files / "sub", "--name", "one")[0] == 0
    process = ballast("snapshot", "diff", repo, "one", "many")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 0
    process.stderr.close()


def test_names_that_are_no_text_can_be_shown(run: Run, repo: Path, files: Path) -> None:
    with open(os.path.join(os.fsencode(files), b"\xff\x1b"), "wb"):
        pass
    assert run("snapshot", "create", repo, files, "--name", "odd")[0] == 0
    assert run("snapshot", "create", repo, files / "sub", "--name", "sub")[0] == 0
    code, out, _ = run("snapshot", "diff", repo, "sub:/", "odd:/")
    assert code == 0 and "\\xff\\x1b" in out
    code, out, _ = run("snapshot", "diff", repo, "sub:/", "odd:/", "--json")
    assert any(os.fsencode(one["path"]).endswith(b"\xff\x1b") for one in json.loads(out))
