"""What other commands may ask of a mount, verb by verb: fields in, JSON out.

| verb | fields | answer |
|---|---|---|
| status | | `mount` {pid, mountpoint, read_only}, `status` (the document of `ballast status --json`) |
| commit | `name` (or null) | `id`, `name` of the snapshot; null only makes `live` durable: an empty answer |
| delete | `snapshot` (name or id) | `id`, `name`, `collected_bytes` (what came back at once, as room was short) |
| pin, unpin | `snapshot` (name or id) | `id`, `name` |
| undelete | `snapshot` (name in the trash, or id), `name` (or null) | `id`, `name` |
| rename | `snapshot`, `name` | `id`, `name` |
| gc | `safety` (full, none), `dry_run` | the document of `ballast gc --json` |
| shutdown | `force` | nothing, once everything is durable and closed |

`shutdown` belongs to `service.py`. A read-only mount knows `status` and `shutdown` alone.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Final

from fusefs.committer import Committer
from fusefs.service import Verb
from fusefs.wire import Fields, Json
from fusefs.workers import Workers
from repository.errors import UsageError
from repository.format.catalog import Slot
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.snapshots import id_text


class Verbs:
    """The verbs of one mount; `committer` is None in a read-only one."""

    def __init__(self, repository: Repository, workers: Workers, mountpoint: str, committer: Committer | None) -> None:
        self._repository: Final = repository
        self._workers: Final = workers
        self._mountpoint: Final = mountpoint
        self._committer: Final = committer

    def table(self) -> dict[str, Verb]:
        """Verb -> handler."""
        verbs: dict[str, Verb] = {"status": self._status}
        if self._committer is None:
            return verbs
        return verbs | {
            "commit": self._commit,
            "delete": self._delete,
            "undelete": self._undelete,
            "rename": self._rename,
            "pin": self._pin,
            "unpin": self._unpin,
            "gc": self._gc,
        }

    async def _status(self, _: Fields) -> dict[str, Json]:
        status = await self._workers.slow(self._repository.status)
        mount: dict[str, Json] = {
            "pid": os.getpid(),
            "mountpoint": self._mountpoint,
            "read_only": self._committer is None,
        }
        return {"mount": mount, "status": status.to_json()}

    async def _commit(self, fields: Fields) -> dict[str, Json]:
        assert self._committer is not None
        name = _optional(fields, "name")
        if name is None:
            await self._committer.make_durable()
            return {}
        return _told(await self._committer.create_named(name))

    async def _delete(self, fields: Fields) -> dict[str, Json]:
        wanted = _text(fields, "snapshot")
        told = await self._change(lambda: self._repository.delete(self._repository.find(wanted)))
        return told | {"collected_bytes": await self._workers.recover(self._repository.recovery.deleted)}

    async def _undelete(self, fields: Fields) -> dict[str, Json]:
        wanted, name = _text(fields, "snapshot"), _optional(fields, "name")
        found = self._repository.snapshots.find_trash
        return await self._change(lambda: self._repository.undelete(found(wanted), name))

    async def _rename(self, fields: Fields) -> dict[str, Json]:
        wanted, name = _text(fields, "snapshot"), _text(fields, "name")
        return await self._change(lambda: self._repository.rename(self._repository.find(wanted), name))

    async def _pin(self, fields: Fields) -> dict[str, Json]:
        wanted = _text(fields, "snapshot")
        return await self._change(lambda: self._repository.pin(self._repository.find(wanted)))

    async def _unpin(self, fields: Fields) -> dict[str, Json]:
        wanted = _text(fields, "snapshot")
        return await self._change(lambda: self._repository.unpin(self._repository.find(wanted)))

    async def _gc(self, fields: Fields) -> dict[str, Json]:
        safety, dry_run = _text(fields, "safety").upper(), fields.get("dry_run") is True
        if safety not in Safety.__members__:
            raise UsageError("The request's safety is neither full nor none.")
        report = await self._workers.slow(partial(self._repository.gc, safety=Safety[safety], dry_run=dry_run))
        return report.to_json()

    async def _change(self, change: Callable[[], Slot]) -> dict[str, Json]:
        """Find and change in one hop, so that nothing comes between."""
        return _told(await self._workers.slow(change))


def _told(slot: Slot) -> dict[str, Json]:
    return {"id": id_text(slot.snapshot_id), "name": slot.name}


def _text(fields: Fields, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise UsageError(f"The request lacks '{key}'.")
    return value


def _optional(fields: Fields, key: str) -> str | None:
    return None if fields.get(key) is None else _text(fields, key)
