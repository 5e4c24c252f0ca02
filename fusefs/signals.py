"""SIGTERM, SIGINT and SIGHUP end a mount as `ballast umount` does; pyfuse3 by itself would leave a dead mount
behind."""

import logging
import signal
from collections.abc import Callable
from typing import Final

import trio

_log = logging.getLogger(__name__)

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def watch_signals(
    end: Callable[[str], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Calls `end(reason)` for each ending signal; a second one changes nothing: a commit under way is never cut
    short."""
    with trio.open_signal_receiver(*ENDING) as received:
        task_status.started()
        async for number in received:
            name = signal.Signals(number).name
            _log.info("mount.signal", extra={"signal": name})
            end(name)
