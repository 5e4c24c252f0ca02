"""Errors as JSON, for the pipe to the foreground and for the control socket."""

import json
from collections.abc import Mapping
from typing import Final, TypeGuard

from repository import errors
from repository.errors import BallastError, RefusedError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Fields = Mapping[str, Json]

_CLASSES: Final[dict[str, type[BallastError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, BallastError)
}


def error_fields(error: BallastError) -> dict[str, Json]:
    """What `error_from` needs to make the same error again elsewhere."""
    kind = next(one.__name__ for one in type(error).__mro__ if one.__name__ in _CLASSES)
    fields: dict[str, Json] = {"error": kind, "message": str(error)}
    if isinstance(error, RefusedError):
        fields["errno"] = error.errno
    return fields


def error_from(fields: Fields) -> BallastError:
    """The error that `error_fields` described; a plain BallastError where its class is unknown here."""
    kind = _CLASSES.get(str(fields.get("error")), BallastError)
    message = str(fields.get("message", "the mount answered with an error that it did not explain"))
    if issubclass(kind, RefusedError):
        number = fields.get("errno")
        return RefusedError(number) if isinstance(number, int) else BallastError(message)
    return kind(message)


def encode_line(fields: Fields) -> bytes:
    """One JSON object on one line."""
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> dict[str, Json]:
    """The object on a line. Raises ValueError for anything else."""
    value: object = json.loads(line)
    if not _is_object(value):
        raise ValueError("not a JSON object")
    return value


def _is_object(value: object) -> TypeGuard[dict[str, Json]]:
    return isinstance(value, dict)
