"""The control socket: requests, errors that come across as what they were, and clients that misbehave."""

import os
import socket
from pathlib import Path

import pytest
import trio

from fusefs import control
from fusefs.wire import Fields, Json, decode_line, encode_line, error_fields, error_from
from repository import errors
from repository.errors import BallastError, BusyError, NoSuchSnapshotError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


async def answer(verb: str, fields: Fields) -> dict[str, Json]:
    match verb:
        case "echo":
            return {"fields": dict(fields)}
        case "slow":
            await trio.sleep(0.1)
            return {}
        case "pinned":
            raise BusyError("'x' is pinned.")
        case _:
            raise ZeroDivisionError("surprise")


async def ask(path: Path, verb: str, fields: Fields | None = None) -> dict[str, Json]:
    return await trio.to_thread.run_sync(control.ask, path, verb, fields or {})


async def test_a_request_is_answered(path: Path, nursery: trio.Nursery) -> None:
    await nursery.start(control.ControlServer(answer).serve, path)
    assert await ask(path, "echo", {"name": "ünï\n", "deep": [1, None]}) == {
        "fields": {"name": "ünï\n", "deep": [1, None]}
    }
    assert path.stat().st_mode & 0o777 == 0o600


async def test_many_at_once_and_more_than_there_are_places(path: Path, nursery: trio.Nursery) -> None:
    await nursery.start(control.ControlServer(answer).serve, path)
    async with trio.open_nursery() as clients:
        for _ in range(2 * control.CONNECTIONS_MAX):
            clients.start_soon(ask, path, "slow")


async def test_an_error_comes_across_as_itself(path: Path, nursery: trio.Nursery) -> None:
    await nursery.start(control.ControlServer(answer).serve, path)
    with pytest.raises(BusyError, match=r"'x' is pinned\."):
        await ask(path, "pinned")


@pytest.mark.logs("control.failed")
async def test_a_crash_of_a_verb_is_an_answer_too_and_the_server_goes_on(path: Path, nursery: trio.Nursery) -> None:
    await nursery.start(control.ControlServer(answer).serve, path)
    with pytest.raises(BallastError, match="surprise"):
        await ask(path, "crash")
    assert await ask(path, "echo") == {"fields": {}}


@pytest.mark.parametrize("line", [b"", b"half", b"[1]\n", b"\xff\n", b"{}\n{}\n", b'{"verb": 7}\n', b"x" * 100_000])
async def test_nonsense_harms_nobody(path: Path, nursery: trio.Nursery, line: bytes) -> None:
    async def crude(verb: str, fields: Fields) -> dict[str, Json]:
        if verb == "echo":
            return {}
        raise errors.UsageError(verb)

    await nursery.start(control.ControlServer(crude).serve, path)

    def talk() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.settimeout(5)
            try:
                client.sendall(line)
                client.shutdown(socket.SHUT_WR)
                client.recv(1000)
            except (BrokenPipeError, ConnectionResetError):
                pass

    await trio.to_thread.run_sync(talk)
    assert await ask(path, "echo") == {}


async def test_a_client_that_leaves_does_not_end_the_work(path: Path, nursery: trio.Nursery) -> None:
    done = trio.Event()

    async def work(verb: str, fields: Fields) -> dict[str, Json]:
        await trio.sleep(0.05)
        done.set()
        return {}

    server = control.ControlServer(work)
    await nursery.start(server.serve, path)

    def leave() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(encode_line({"verb": "work"}))

    await trio.to_thread.run_sync(leave)
    with trio.fail_after(5):
        await done.wait()
        await server.wait_idle()


async def test_a_client_that_does_not_read_gives_its_place_back(
    path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REPLY_TIMEOUT_S", 0.05)

    async def much(verb: str, fields: Fields) -> dict[str, Json]:
        return {"text": "x" * (8 << 20)}

    server = control.ControlServer(much)
    await nursery.start(server.serve, path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(encode_line({"verb": "much"}))
        with trio.fail_after(20):
            while not server.busy:
                await trio.sleep(0.001)
            await server.wait_idle()


async def test_who_does_not_want_to_wait_for_long_is_told(path: Path, nursery: trio.Nursery) -> None:
    async def hang(verb: str, fields: Fields) -> dict[str, Json]:
        await trio.Event().wait()
        return {}

    await nursery.start(control.ControlServer(hang).serve, path)
    with pytest.raises(BallastError, match="did not answer"):
        await trio.to_thread.run_sync(lambda: control.ask(path, "status", {}, timeout_s=0.05))


async def test_the_socket_of_a_dead_mount_is_replaced_and_ours_goes_with_us(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(control.NotMountedError):
        await ask(path, "echo")
    async with trio.open_nursery() as nursery:
        await nursery.start(control.ControlServer(answer).serve, path)
        assert await ask(path, "echo") == {"fields": {}}
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_socket_that_is_somebody_elses_by_now_is_left_alone(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(control.ControlServer(answer).serve, path)
        path.unlink()
        path.touch()
        nursery.cancel_scope.cancel()
    assert path.exists()


def test_every_error_survives_the_wire() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BallastError)]
    assert len(kinds) > 10
    for kind in kinds:
        error = kind(2) if issubclass(kind, errors.RefusedError) else kind("what it says")
        back = error_from(decode_line(encode_line(error_fields(error))))
        assert type(back) is kind and str(back) == str(error) and back.exit_code == error.exit_code


def test_an_unknown_error_arrives_as_its_nearest_known_base() -> None:
    class Special(NoSuchSnapshotError):
        pass

    assert type(error_from(error_fields(Special("x")))) is NoSuchSnapshotError
    assert type(error_from({"error": "FromTheFuture", "message": "x"})) is BallastError


def test_without_a_repository_nothing_is_mounted(tmp_path: Path) -> None:
    with pytest.raises(control.NotMountedError):
        control.request(tmp_path, "status")
    (tmp_path / "lock").touch()
    with pytest.raises(control.NotMountedError):
        control.request(tmp_path, "status")


def test_the_runtime_directory_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", os.getuid)
    directory = tmp_path / "runtime"
    monkeypatch.setattr(control, "runtime_directory", lambda: directory)
    assert control.prepare_runtime_directory() == directory
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    with pytest.raises(errors.VolumeError, match="private"):
        control.prepare_runtime_directory()
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(errors.VolumeError, match="private"):
        control.prepare_runtime_directory()
