"""Who may come in: which key came, what it may do, for which tenant, and how often.

One lookup on the digest of the key for each request. Without any key set up everybody may do
everything, which is for a service on loopback.
"""

from __future__ import annotations

import hmac
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from policies.errors import Unavailable
from services.decider import DEFAULT_TENANT
from services.keys import (
    FEEDBACK,
    OBSERVE,
    OPERATE,
    ROUTE,
    SCOPES,
    ApiKey,
    DamagedKeys,
    digest_of,
    read_keys,
    service_key,
)
from services.refusals import Forbidden, RateLimited, Unauthorised

# How often the key file is looked at: a new key, or a revoked one, counts after this, seconds.
REREAD_S: Final = 1.0
OPEN_PATHS: Final = frozenset({"/healthz"})
# What a caller learns on any key: how to call, and whether anybody answers.
_ANY_KEY: Final = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/", "/readyz")
_READING: Final = frozenset({"GET", "HEAD"})
_ALL: Final = frozenset(SCOPES)

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Tokens that a key may still spend; filled at its rate, at most one second's worth.

    A request is let in on one whole token and pays for what it turns out to hold: a batch takes
    the bucket below zero, and the next request waits for it to fill.
    """

    tokens: float
    filled_at: float

    def fill(self, now: float, rate_per_s: float) -> None:
        """Add what has come in since the last time."""
        most = max(1.0, rate_per_s)
        self.tokens = min(most, self.tokens + max(0.0, now - self.filled_at) * rate_per_s)
        self.filled_at = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request, as far as its key says.

    Attributes:
        name: The key's name; None where none is asked for.
        scopes: What the caller may do.
        tenant: The only tenant the caller may act for; None for any.
        max_body_bytes: Largest body of this caller; None for the service's own limit.
        bucket: What the caller may still spend; None without a limit.
    """

    name: str | None = None
    scopes: frozenset[str] = _ALL
    tenant: str | None = None
    max_body_bytes: int | None = None
    bucket: Bucket | None = field(default=None, repr=False)

    def acts_for(self, asked: str | None) -> str:
        """Return the tenant of a request that names this one, or none; raises Forbidden."""
        if self.tenant is None:
            return DEFAULT_TENANT if asked is None else asked
        if asked is not None and asked != self.tenant:
            raise Forbidden(
                "this key belongs to another tenant",
                field="tenant",
                value=asked,
                allowed="the key's own tenant, or none named",
            )
        return self.tenant

    def spend(self, more: int) -> None:
        """Pay for what a request holds beyond its first decision or outcome."""
        if self.bucket is not None and more > 0:
            self.bucket.tokens -= more


ANYBODY: Final = Caller()
# Where a request's scope says who sent it.
CALLER: Final = "barp.caller"


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Return who sent a request that was let in."""
    caller: Caller = scope[CALLER]
    return caller


class Door:
    """Lets callers in by their key.

    Args:
        secret: The signing secret; the service's own key is derived from it.
        api_key_sha256: SHA-256 of a key that may do everything; None for no such key.
        keys_file: Where keys with scopes are kept; None for none. A key is asked for where either
            is there when this process starts.
        clock: Seconds, from any origin.
    """

    def __init__(
        self,
        *,
        secret: bytes,
        api_key_sha256: str | None,
        keys_file: Path | None,
        clock: Callable[[], float],
    ) -> None:
        self._clock, self._file = clock, keys_file
        own = ApiKey(name="service", sha256=digest_of(service_key(secret)), scopes=_ALL)
        self._always = {own.sha256: own}
        if api_key_sha256 is not None:
            digest = api_key_sha256.lower()
            self._always[digest] = ApiKey(name="api_key", sha256=digest, scopes=_ALL)
        self._keys: dict[str, ApiKey] = {}
        self._callers: dict[str, tuple[ApiKey, Caller]] = {}
        self._seen: tuple[int, int, int] | None = None
        self._damaged = False
        self._look_at = -math.inf
        self._closed = api_key_sha256 is not None
        self._replicas = 1

    def share_among(self, replicas: int) -> None:
        """Take a share of each key's rate: so many replicas answer, this one among them."""
        self._replicas = max(1, replicas)

    def admit(self, method: str, path: str, authorization: str) -> Caller:
        """Let a request in, or say why not; takes one token of a key that has a limit.

        Raises:
            Unauthorised: No key, or one that is not known (any more).
            Forbidden: The key may not do this.
            RateLimited: The key has spent what it may, for now.
            Unavailable: The key file was damaged when this process started.
        """
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + REREAD_S
            self._reread()
        if not self._closed or path in OPEN_PATHS:
            return ANYBODY
        key, caller = self._known(authorization)
        needed = scopes_for(method, path)
        if caller.scopes.isdisjoint(needed):
            raise Forbidden(
                f"key {key.name} has not the scope for this",
                field="authorization",
                allowed=f"a key with one of the scopes {', '.join(sorted(needed))}",
            )
        if caller.bucket is not None and key.rate_per_s is not None:
            self._take(caller.bucket, key.rate_per_s / self._replicas, key, now)
        return caller

    def _known(self, authorization: str) -> tuple[ApiKey, Caller]:
        """Find the key that came; raises Unauthorised, or Unavailable with a damaged key file."""
        scheme, _, came = authorization.partition(" ")
        digest = digest_of(came.strip())
        key = self._always.get(digest) or self._keys.get(digest)
        if key is None or scheme.lower() != "bearer" or not hmac.compare_digest(key.sha256, digest):
            if self._damaged and not self._keys:
                raise Unavailable("the key file is damaged: no key is known", field="keys_file")
            raise Unauthorised(
                "an API key is needed", field="authorization", allowed="Bearer <key>"
            )
        known = self._callers.get(digest)
        if known is None or known[0] != key:
            known = self._callers[digest] = key, _caller(key, self._clock())
        return known

    def _take(self, bucket: Bucket, rate_per_s: float, key: ApiKey, now: float) -> None:
        """Take one token; raises RateLimited where there is not one."""
        bucket.fill(now, rate_per_s)
        if bucket.tokens < 1.0:
            wait_s = (1.0 - bucket.tokens) / rate_per_s
            raise RateLimited(
                f"key {key.name} is limited to {key.rate_per_s:g} decisions and outcomes a second",
                retry_after_s=max(1, math.ceil(wait_s)),
                field="authorization",
                value=key.rate_per_s,
                allowed=f"at most {key.rate_per_s:g} a second",
            )
        bucket.tokens -= 1.0

    def _reread(self) -> None:
        """Take up a key file that has changed; one that is gone or damaged changes nothing."""
        if self._file is None:
            return
        try:
            status = self._file.stat()
            seen = status.st_ino, status.st_mtime_ns, status.st_size
            if seen == self._seen:
                return
            self._seen = seen
            self._closed = True
            self._keys = {key.sha256: key for key in read_keys(self._file)}
            self._damaged = False
            self._callers = {d: c for d, c in self._callers.items() if d in self._keys}
        except FileNotFoundError:
            # Whoever takes the file away must not open the service.
            return
        except (DamagedKeys, OSError) as error:
            self._damaged = True
            logger.error("%d keys stay as they are: %s", len(self._keys), error)


def scopes_for(method: str, path: str) -> frozenset[str]:
    """Say which scopes let a call in, any one of them; what is not known needs `operate`.

    >>> sorted(scopes_for("GET", "/v1/status"))
    ['observe', 'operate']
    """
    if path.startswith("/v1/route"):
        return frozenset({ROUTE})
    if path.startswith("/v1/feedback"):
        return frozenset({FEEDBACK})
    if path.startswith("/v1/decisions/"):
        return _ALL if method in _READING else frozenset({FEEDBACK})
    if method in _READING:
        if path.startswith(_ANY_KEY) or path == "/v1/models":
            return _ALL
        return frozenset({OBSERVE, OPERATE})
    return frozenset({OPERATE})


def _caller(key: ApiKey, now: float) -> Caller:
    """Make the caller of a key, with a full bucket where its rate is limited."""
    full = None
    if key.rate_per_s is not None:
        full = Bucket(tokens=max(1.0, key.rate_per_s), filled_at=now)
    return Caller(
        name=key.name,
        scopes=key.scopes,
        tenant=key.tenant,
        max_body_bytes=key.max_body_bytes,
        bucket=full,
    )
