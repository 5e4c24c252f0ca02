"""The boundary: nothing but FUSEError leaves a handler, and every error has its number."""

import errno
import logging

import pyfuse3
import pytest
import trio

from fusefs import errnos
from repository import errors


def subclasses(kind: type[errors.BallastError]) -> set[type[errors.BallastError]]:
    return {kind}.union(*(subclasses(one) for one in kind.__subclasses__()))


def test_every_error_of_the_repository_is_in_the_table_itself() -> None:
    of_repository = {kind for kind in subclasses(errors.BallastError) if kind.__module__ == errors.__name__}
    assert of_repository == set(errnos._TABLE)


def test_every_subclass_anywhere_has_a_number() -> None:
    class Unheard(errors.MissingRecordError):
        pass

    for kind in subclasses(errors.BallastError):
        error = kind(errno.ENOENT) if issubclass(kind, errors.RefusedError) else kind("x")
        assert errnos.errno_of(error) in errno.errorcode
    assert errnos.errno_of(Unheard("x")) == errno.EIO


class Handlers:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    @errnos.boundary
    async def act(self, value: int) -> int:
        if self.error is not None:
            raise self.error
        return value


@pytest.mark.logs("handler.failed", "handler.crashed")
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (pyfuse3.FUSEError(errno.ENOTDIR), errno.ENOTDIR),
        (errors.NoSpaceError("full"), errno.ENOSPC),
        (errors.BusyError("pinned"), errno.EBUSY),
        (ZeroDivisionError("surprise"), errno.EIO),
        (MemoryError(), errno.EIO),
        (ExceptionGroup("two", [ValueError(), OSError()]), errno.EIO),
    ],
)
async def test_only_fuse_errors_leave(error: Exception, number: int) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Handlers(error).act(1)
    assert caught.value.errno == number


async def test_answers_and_cancellation_pass() -> None:
    assert await Handlers(None).act(7) == 7
    with trio.CancelScope() as scope:
        scope.cancel()
        await Handlers(None).act(7)
        await trio.lowlevel.checkpoint()
        raise AssertionError("unreachable")
    assert scope.cancelled_caught


@pytest.mark.logs("handler.crashed")
async def test_an_unknown_error_is_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(pyfuse3.FUSEError):
        await Handlers(ZeroDivisionError("surprise")).act(1)
    assert "Traceback" in caplog.text and "surprise" in caplog.text


async def test_what_a_program_brought_upon_itself_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(pyfuse3.FUSEError):
        await Handlers(errors.NameTakenError("there")).act(1)
    assert caplog.text == ""
