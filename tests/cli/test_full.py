"""Commands when there is no room: what they say, what they give back, and what they do to make some.

The disk is a quota; what another program would take of it is taken by a file in `index/`, which counts as ours and is
nobody's.
"""

import json
import os
from pathlib import Path
from typing import Protocol

import pytest

from repository.repo import Repository
from repository.status import RECOVERY_EVENT
from repository.storage.calls import SystemClock
from repository.units import MB
from tests.support.repositories import SetClock, publish

pytestmark = pytest.mark.slow

Json = dict[str, object]
RESERVE_BYTES = 20 * MB
QUOTA_BYTES = 100 * MB


class Run(Protocol):
    """The fixture `run`: exit code, standard output, standard error."""

    def __call__(self, *words: object) -> tuple[int, str, str]: ...


@pytest.fixture
def repo(tmp_path: Path, run: Run) -> Path:
    words = "--reserve", RESERVE_BYTES, "--headspace", "0", "--quota", QUOTA_BYTES
    assert run("init", tmp_path / "repo", *words)[0] == 0
    return tmp_path / "repo"


def loaded(out: str) -> Json:
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def number(document: Json, key: str) -> int:
    value = document[key]
    assert isinstance(value, int)
    return value


def names(run: Run, repo: Path, *words: str) -> list[str]:
    code, out, _ = run("snapshot", "list", repo, "--json", *words)
    assert code == 0
    return [one["name"] for one in json.loads(out)]


def status(run: Run, repo: Path) -> Json:
    code, out, _ = run("status", repo, "--json")
    assert code == 0
    return loaded(out)


def fill(files: Path, *sizes: int) -> Path:
    """Files nobody has seen before."""
    files.mkdir(exist_ok=True)
    for index, size in enumerate(sizes):
        (files / f"f{index}").write_bytes(os.urandom(size))
    return files


class Thief:
    """Takes what is left of the quota."""

    def __init__(self, repo: Path) -> None:
        self._path = repo / "index" / "thief"

    def take(self, nbytes: int) -> None:
        with self._path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)

    def give_back(self) -> None:
        self._path.unlink()


@pytest.fixture
def emergency(repo: Path, run: Run, tmp_path: Path) -> Thief:
    """Two snapshots of 15 MB each, one of them in the trash; the reserve is gone, and its room taken."""
    fill(tmp_path / "one", 15 * MB)
    fill(tmp_path / "two", 15 * MB)
    assert run("snapshot", "create", repo, tmp_path / "one", "--name", "one")[0] == 0
    assert run("snapshot", "create", repo, tmp_path / "two", "--name", "two")[0] == 0
    assert run("snapshot", "delete", repo, "one")[0] == 0
    assert run("reserve", "release", repo)[0] == 0
    thief = Thief(repo)
    thief.take(number(status(run, repo), "available_bytes"))
    return thief


def test_a_snapshot_that_does_not_fit_is_28_and_gives_its_bytes_back(run: Run, repo: Path, tmp_path: Path) -> None:
    assert run("snapshot", "create", repo, fill(tmp_path / "fits", 10 * MB), "--name", "fits")[0] == 0
    before = number(status(run, repo), "stored_bytes")
    files = fill(tmp_path / "too-large", *[1 * MB] * 100)
    code, out, err = run("snapshot", "create", repo, files, "--no-estimate")
    assert (code, out) == (28, "") and len(err.splitlines()) == 1
    assert "were stored when the disk was full. Nothing of them is listed, and their room is given back" in err
    assert names(run, repo) == ["fits"]
    now = status(run, repo)
    assert number(now, "stored_bytes") <= before + 1 * MB
    assert now["mode"] == "normal" and now["level"] != "critical"
    assert run("check", repo, "--read-data")[0] == 0
    code, out, _ = run("gc", repo, "--json")
    assert code == 0 and loaded(out)["emergency"] is False
    assert run("snapshot", "create", repo, fill(tmp_path / "later", 10 * MB))[0] == 0


def test_what_cannot_fit_is_refused_before_anything_is_stored(run: Run, repo: Path, tmp_path: Path) -> None:
    files = fill(tmp_path / "too-large", *range(900_000, 1_020_000, 1000))
    before = status(run, repo)
    code, out, err = run("snapshot", "create", repo, files)
    assert (code, out) == (28, "") and len(err.splitlines()) == 1
    assert "Insufficient storage: " in err and " available, need " in err
    assert "There is no older snapshot whose deletion would help: free at least " in err and "--no-estimate" in err
    after = status(run, repo)
    assert (after["stored_bytes"], after["chunks"]) == (before["stored_bytes"], before["chunks"])


def test_room_that_only_has_to_be_collected_counts(run: Run, repo: Path, tmp_path: Path) -> None:
    """The trash is no reason to refuse: recovery takes it while the snapshot is made."""
    assert run("snapshot", "create", repo, fill(tmp_path / "old", 5 * MB, 30 * MB), "--name", "old")[0] == 0
    assert run("snapshot", "delete", repo, "old")[0] == 0
    files = fill(tmp_path / "new", 1 * MB, 40 * MB)
    code, out, err = run("snapshot", "create", repo, files, "--name", "new")
    assert (code, err) == (0, "")
    assert ": recovery freed " in out and "given up" not in out.lower()
    assert names(run, repo, "--trash") == [] and status(run, repo)["mode"] == "normal"
    assert (repo / "ballast.reserve").stat().st_blocks * 512 >= RESERVE_BYTES


def test_the_command_after_a_recovery_tells_of_it(run: Run, repo: Path, tmp_path: Path) -> None:
    assert run("snapshot", "create", repo, fill(tmp_path / "old", 35 * MB), "--name", "old")[0] == 0
    assert run("snapshot", "delete", repo, "old")[0] == 0
    assert run("snapshot", "create", repo, fill(tmp_path / "new", 42 * MB))[0] == 0
    code, out, err = run("snapshot", "list", repo, "--json")
    assert code == 0 and len(json.loads(out)) == 1
    assert err.startswith("ballast: The disk was full ") and len(err.splitlines()) == 1
    assert run("snapshot", "list", repo)[2] == ""


def test_a_refusal_names_snapshots_that_would_do(run: Run, tmp_path: Path) -> None:
    repo = tmp_path / "larger"
    assert run("init", repo, "--reserve", RESERVE_BYTES, "--headspace", "0", "--quota", 2 * QUOTA_BYTES)[0] == 0
    for turn, size in enumerate((50 * MB, 20 * MB)):
        assert run("snapshot", "create", repo, fill(tmp_path / "old", size), "--name", f"old-{turn}")[0] == 0
    files = fill(tmp_path / "new", 95 * MB)
    code, _, err = run("snapshot", "create", repo, files)
    assert code == 28 and len(err.splitlines()) == 1
    assert f"give up what you can spare ('ballast snapshot delete {repo} old-0' would do)" in err, err
    assert run("snapshot", "pin", repo, "old-0")[0] == 0
    code, _, err = run("snapshot", "create", repo, files)
    assert code == 28 and "There is no older snapshot whose deletion would help" in err, err


def test_gc_forces_safety_none_while_the_reserve_is_missing(
    run: Run, repo: Path, emergency: Thief, tmp_path: Path
) -> None:
    code, out, err = run("gc", repo, "--dry-run", "--json")
    assert err == "Emergency mode detected: forcing safety=none to reclaim space immediately\n"
    plan = loaded(out)
    assert (plan["safety"], plan["emergency"], plan["reserve_whole"]) == ("none", True, False)
    assert number(plan, "reclaimable_bytes") > 14 * MB and names(run, repo, "--trash") == ["one"]
    code, out, err = run("gc", repo, "--dry-run")
    assert code == 0 and f"would free {number(plan, 'reclaimable_bytes'):,} bytes" in out

    code, out, err = run("gc", repo, "--safety", "full", "--json")
    assert (code, err) == (0, ""), "who says what they want gets it"
    assert loaded(out)["freed_bytes"] == 0 and names(run, repo, "--trash") == ["one"]

    code, out, err = run("gc", repo, "--json")
    assert err == "Emergency mode detected: forcing safety=none to reclaim space immediately\n"
    done = loaded(out)
    assert (code, done["safety"], done["emergency"], done["reserve_whole"]) == (0, "none", True, False)
    assert done["freed_bytes"] == plan["reclaimable_bytes"] and names(run, repo, "--trash") == []
    emergency.give_back()
    code, out, err = run("gc", repo, "--json")
    assert (code, err) == (0, "") and loaded(out)["reserve_whole"] is True
    code, out, err = run("gc", repo)
    assert (code, err) == (0, "") and "reserve" not in out


def test_after_a_refused_snapshot_a_deletion_and_gc_make_the_room_for_it(run: Run, repo: Path, tmp_path: Path) -> None:
    """Whoever deletes for the sake of a snapshot that did not fit wants the room now, and not in 24 hours."""
    assert run("snapshot", "create", repo, fill(tmp_path / "first", 40 * MB), "--name", "first")[0] == 0
    files = fill(tmp_path / "second", 45 * MB)
    assert run("snapshot", "create", repo, files, "--name", "second")[0] == 28
    assert run("snapshot", "delete", repo, "first")[0] == 0
    assert names(run, repo, "--trash") == ["first"]
    code, out, err = run("gc", repo, "--json")
    assert code == 0 and err == "Emergency mode detected: forcing safety=none to reclaim space immediately\n"
    assert number(loaded(out), "freed_bytes") >= 40 * MB
    assert run("snapshot", "create", repo, files, "--name", "second")[0] == 0
    code, out, err = run("gc", repo, "--json")
    assert (code, err, loaded(out)["emergency"]) == (0, "", False)


def test_gc_says_how_the_reserve_is(run: Run, repo: Path, emergency: Thief) -> None:
    code, out, _ = run("gc", repo)
    assert code == 0 and "The reserve (20.0 MB) is missing and does not fit: " in out
    emergency.give_back()
    assert run("reserve", "release", repo)[0] == 0
    assert run("snapshot", "delete", repo, "two")[0] == 0
    assert run("reserve", "release", repo)[0] == 0
    emergency.take(number(status(run, repo), "available_bytes") - 10 * MB)
    code, out, _ = run("gc", repo)
    assert code == 0 and "the reserve (20.0 MB) is whole again" in out


def test_while_the_reserve_is_missing_nothing_grows_and_a_deletion_collects_at_once(
    run: Run, repo: Path, emergency: Thief, tmp_path: Path
) -> None:
    assert run("gc", repo, "--safety", "full")[0] == 0
    code, _, err = run("snapshot", "delete", repo, "two", "--dry-run")
    assert code == 0
    code, out, err = run("snapshot", "delete", repo, "two", "--json")
    deleted = loaded(out)
    assert (code, err) == (0, "")
    assert number(deleted, "collected_bytes") > 25 * MB and deleted["reserve_whole"] is True
    assert names(run, repo) == names(run, repo, "--trash") == []
    assert status(run, repo)["mode"] == "normal"


def test_deleting_says_what_came_back(run: Run, repo: Path, emergency: Thief) -> None:
    code, out, _ = run("snapshot", "delete", repo, "two", "--dry-run")
    assert code == 0 and "at once, because the reserve is missing." in out
    code, out, _ = run("snapshot", "delete", repo, "two")
    assert code == 0 and "came back at once, because the reserve was missing. It is whole again." in out


def test_a_reserve_that_does_not_fit_is_28(run: Run, repo: Path, emergency: Thief) -> None:
    code, out, err = run("reserve", "restore", repo)
    assert (code, out) == (28, "") and "The reserve (20.0 MB) is missing and does not fit" in err
    code, out, _ = run("reserve", "status", repo)
    assert code == 0 and f"ballast reserve restore {repo}" in out
    emergency.give_back()
    code, out, _ = run("reserve", "restore", repo)
    assert (code, out) == (0, "The reserve (20.0 MB) is whole.\n")


def test_thinning_on_request_only(run: Run, tmp_path: Path) -> None:
    """Implicit snapshots go for a new one where that was allowed; never without. Its 40 MB are more than the
    25 that are available and the headroom's 10, and less by far than with the 35 of one old one: segments are large for
    this volume, so nothing is exact to the megabyte."""
    repo = tmp_path / "repo"
    assert run("init", repo, "--reserve", RESERVE_BYTES, "--headspace", "0", "--quota", 160 * MB)[0] == 0
    with Repository.open(repo, writable=True, clock=SystemClock()) as opened:
        for turn in range(3):
            publish(opened, {f"f{turn}": os.urandom(35 * MB)}, source="host:/old")
    files = fill(tmp_path / "new", 35 * MB, 5 * MB)
    code, _, err = run("snapshot", "create", repo, files)
    assert code == 28 and len(names(run, repo)) == 3, err
    code, _, err = run("snapshot", "create", repo, files, "--auto-delete", "--min-snapshots", "3")
    assert code == 28 and len(names(run, repo)) == 3, err
    code, out, err = run("snapshot", "create", repo, files, "--auto-delete", "--name", "new", "--json")
    assert code == 0, err
    assert len(names(run, repo)) == 3 and "new" in names(run, repo)
    gone = loaded(out)["deleted_snapshots"]
    assert isinstance(gone, list) and len(gone) == 1


def test_status_beside_a_writer_tells_its_mode(run: Run, repo: Path) -> None:
    """What a mount is in is not on the disk, except for what it tells there."""
    with Repository.open(repo, writable=True) as opened:
        for mode, before in (("read-only", "emergency"), ("normal", "read-only"), ("failed", "normal")):
            opened.events.add("mode.changed", {"mode": mode, "before": before})
            assert status(run, repo)["mode"] == mode
    assert status(run, repo)["mode"] == "normal", "nobody is in any mode"
    with Repository.open(repo, writable=True):
        assert status(run, repo)["mode"] == "normal", "that was somebody else's"


def recovered(repo: Path, clock: SetClock, **fields: object) -> None:
    """An event as recovery leaves it."""
    with Repository.open(repo, writable=True, clock=clock) as opened:
        opened.events.add(
            RECOVERY_EVENT,
            {"freed_bytes": 5 * MB, "deleted_snapshots": [], "outcome": "recovered", **fields},  # type: ignore[dict-item]
        )


def test_the_next_command_tells_of_a_recovery_once(run: Run, repo: Path, state: Path) -> None:
    clock = SetClock()
    assert run("status", repo)[2] == ""
    recovered(repo, clock)
    code, out, err = run("status", repo, "--json")
    assert code == 0 and loaded(out)["recoveries"]
    assert err.startswith("ballast: The disk was full on ") and len(err.splitlines()) == 1
    assert err.endswith(f": recovery freed 5.0 MB (ballast status {repo}).\n")
    assert run("status", repo)[2] == run("gc", repo)[2] == ""
    recovered(repo, clock, deleted_snapshots=["a", "b"])
    recovered(repo, clock, outcome="read-only", freed_bytes=0)
    _, _, err = run("snapshot", "delete", repo, "none")
    assert "The disk was full 2 times, last on " in err
    assert "recovery freed 5.0 MB and gave up 2 snapshots, but not enough came free" in err
    assert len(err.splitlines()) == 2
    assert [path.name[:5] for path in state.iterdir()] == ["told-"]


def test_what_was_told_may_be_forgotten(run: Run, repo: Path, state: Path) -> None:
    """No home, or a full one, is no error."""
    recovered(repo, SetClock())
    state.parent.mkdir()
    state.write_bytes(b"a file where a directory belongs")
    code, _, err = run("status", repo)
    assert code == 0 and len(err.splitlines()) == 1
    state.unlink()
    state.mkdir()
    clock = SetClock()
    recovered(repo, clock)
    assert len(run("status", repo)[2].splitlines()) == 1
    (told,) = state.iterdir()
    told.write_bytes(b"")
    recovered(repo, clock)
    assert len(run("status", repo)[2].splitlines()) == 1
    assert told.read_bytes().strip().isdigit()
