"""Errors as HTTP answers: one status a class, one body for all, never a prompt in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from policies.errors import (
    ArtifactError,
    Conflict,
    InvalidPrompt,
    InvalidRequest,
    NoEligibleArm,
    NotFound,
    RouterError,
    Unavailable,
)
from services.replies import Reply
from services.wire import PreferenceIn

MAX_VALUE_CHARACTERS: Final = 100
RETRY_AFTER_S: Final = 1
_SECRET_FIELDS: Final = frozenset({"prompt", "messages"})


class MalformedJson(InvalidRequest):
    """A body that is not JSON as RFC 8259 has it."""

    code = "malformed_json"


class InvalidWeights(InvalidRequest):
    """A preference whose keys or weights are not what they may be, each by itself."""

    code = "invalid_preference"


class Unauthorised(RouterError):
    """No API key, or a wrong one (HTTP 401)."""

    code = "unauthorised"


class Forbidden(RouterError):
    """A key that may not do this, or not for this tenant (HTTP 403)."""

    code = "forbidden"


class RateLimited(RouterError):
    """A key that has spent what it may, for now (HTTP 429)."""

    code = "rate_limited"

    def __init__(
        self, message: str, *, retry_after_s: int, field: str, value: object, allowed: str
    ) -> None:
        """Keep how long to wait, whole seconds."""
        super().__init__(message, field=field, value=value, allowed=allowed)
        self.retry_after_s = retry_after_s


class BodyTooLarge(RouterError):
    """A body beyond the configured limit (HTTP 413)."""

    code = "body_too_large"


class BodyTooSlow(RouterError):
    """A body that did not arrive in time (HTTP 408)."""

    code = "request_timeout"


class InternalError(RouterError):
    """A bug of ours (HTTP 500)."""

    code = "internal_error"


class Overloaded(Unavailable):
    """More requests in hand than a replica takes: better refused than late (HTTP 503)."""

    code = "overloaded"


class MethodNotAllowed(RouterError):
    """A path that exists, but not for this method (HTTP 405)."""

    code = "method_not_allowed"

    def __init__(self, methods: Sequence[str]) -> None:
        """Keep the methods that the path has."""
        self.methods = tuple(methods)
        allowed = ", ".join(methods)
        super().__init__("the path has no such method", field="method", allowed=allowed)


class Expired(Conflict):
    """An outcome that came after the wait window of its decision had closed."""

    code = "expired"


# The first class that fits gives the status.
_STATUSES: Final[Sequence[tuple[type[RouterError], int]]] = (
    (Unauthorised, 401),
    (Forbidden, 403),
    (RateLimited, 429),
    (BodyTooLarge, 413),
    (BodyTooSlow, 408),
    (MethodNotAllowed, 405),
    (InvalidRequest, 422),
    (NoEligibleArm, 422),
    (NotFound, 404),
    (Conflict, 409),
    # A stored version that does not load, or that this service's encoder cannot feed.
    (ArtifactError, 409),
    (Unavailable, 503),
)


def status_of(error: RouterError) -> int:
    """Return the HTTP status of an error; 500 for one that has none."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def detail_of(error: RouterError) -> dict[str, Any]:
    """Return the inner object of the error body."""
    return {
        "code": error.code,
        "field": error.field,
        "value": shown(error.value),
        "allowed": error.allowed,
        "message": _well_formed(str(error)),
    }


def refusal(error: RouterError) -> Reply:
    """Answer with an error, and with Retry-After where trying again makes sense."""
    status = status_of(error)
    headers = [(b"retry-after", b"%d" % RETRY_AFTER_S)] if status == 503 else []
    if isinstance(error, RateLimited):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.methods).encode()))
    if isinstance(error, Unauthorised):
        headers.append((b"www-authenticate", b"Bearer"))
    return Reply(to_json({"error": detail_of(error)}), status=status, headers=headers)


def shown(value: object) -> object:
    """Cut a value to what an error may repeat: a number as it is, all else as a short string."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    # Of a huge number only the head is shown, and Python refuses to print the hugest.
    text = hex(value) if isinstance(value, int) else str(value)
    return _well_formed(text[:MAX_VALUE_CHARACTERS])


def invalid(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    """Turn the first complaint about a body into our own error."""
    return from_complaint(error.errors(include_url=False)[0], known=tuple(model.model_fields))


def from_complaint(complaint: Mapping[str, Any], *, known: Sequence[str] = ()) -> InvalidRequest:
    """Turn one of pydantic's complaints into our own error.

    Args:
        complaint: One entry of `ValidationError.errors()`.
        known: The keys that would have been taken at the top level.
    """
    kind, path = complaint["type"], [str(step) for step in complaint["loc"]]
    if kind == "json_invalid":
        reason = complaint.get("ctx", {}).get("error", "not JSON")
        return MalformedJson(
            f"the body is not JSON: {reason}", field="body", allowed="JSON (RFC 8259), UTF-8"
        )
    allowed = complaint["msg"]
    if kind == "extra_forbidden":
        keys = tuple(PreferenceIn.model_fields) if "preference" in path[:-1] else known
        allowed = f"only {', '.join(keys)}" if keys else allowed
    name = _well_formed(".".join(path))[:MAX_VALUE_CHARACTERS] or "body"
    return _kind_of(path)(
        f"{name}: {complaint['msg']}",
        field=name,
        value=_repeatable(complaint, path),
        allowed=allowed,
    )


def _kind_of(path: Sequence[str]) -> type[InvalidRequest]:
    """Choose the error class by what the complaint is about."""
    if _SECRET_FIELDS.intersection(path):
        return InvalidPrompt
    return InvalidWeights if "preference" in path else InvalidRequest


_CONTAINER_COMPLAINTS: Final = ("model_type", "model_attributes_type", "dict_type", "list_type")


def _repeatable(complaint: Mapping[str, Any], path: Sequence[str]) -> object:
    """Return the value complained of, unless it is, or may hold, a prompt."""
    value = complaint["input"]
    if isinstance(value, int | float):
        return value
    unnamed = all(isinstance(step, int) for step in complaint["loc"])
    # Text where an object or a list was wanted is likely to be somebody's prompt.
    misplaced = complaint["type"] in ("extra_forbidden", *_CONTAINER_COMPLAINTS)
    hidden = unnamed or misplaced or _SECRET_FIELDS.intersection(path)
    return value if isinstance(value, str) and not hidden else None


def _well_formed(text: str) -> str:
    """Replace lone surrogates, which have no place in UTF-8 and so none in a reply."""
    return text.encode("utf-8", "replace").decode("utf-8")
