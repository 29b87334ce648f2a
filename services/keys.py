"""API keys: what one may do, for whom, how often; and the file that keeps their digests.

A key is 256 random bits, so its SHA-256 says nothing about it, and no slow hash is needed. The
file holds digests only; a key itself is shown once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.artifact import write_atomically
from policies.errors import InvalidRequest, RouterError

ROUTE: Final = "route"
FEEDBACK: Final = "feedback"
OBSERVE: Final = "observe"
OPERATE: Final = "operate"
SCOPES: Final = (ROUTE, FEEDBACK, OBSERVE, OPERATE)
# These look at, or change, what all tenants share: a key for them is nobody's in particular.
SHARED_SCOPES: Final = frozenset({OBSERVE, OPERATE})
PREFIX: Final = "barp_"
KEY_BYTES: Final = 32
MAX_NAME: Final = 64
FILE_VERSION: Final = 1
_NAME: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SERVICE_DOMAIN: Final = b"service-key\x00"
_NUMBERS: Final = ("rate_per_s", "max_body_bytes")


class DamagedKeys(RouterError):
    """A key file that cannot be read, or holds what no key can be."""

    code = "damaged_keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What one key may do.

    Attributes:
        name: What it is called in lists and messages.
        sha256: SHA-256 of the key, hexadecimal.
        scopes: Some of SCOPES.
        tenant: The only tenant it may act for; None for any.
        rate_per_s: Decisions and outcomes a second, over all replicas; None for no limit.
        max_body_bytes: Largest request body; None for the service's own limit.
        created_at: ISO 8601, UTC.
    """

    name: str
    sha256: str
    scopes: frozenset[str]
    tenant: str | None = None
    rate_per_s: float | None = None
    max_body_bytes: int | None = None
    created_at: str = ""

    def __post_init__(self) -> None:
        """Refuse what no key can be; raises InvalidRequest."""
        if _NAME.fullmatch(self.name) is None:
            raise _refused("name", self.name, f"1 to {MAX_NAME} of A-Z a-z 0-9 . _ -")
        if _SHA256.fullmatch(self.sha256) is None:
            raise _refused("sha256", None, "64 hexadecimal digits, lower case")
        if not self.scopes or not self.scopes <= set(SCOPES):
            unknown = ", ".join(sorted(self.scopes - set(SCOPES))) or "none"
            raise _refused("scopes", unknown, f"one or more of {', '.join(SCOPES)}")
        if self.tenant is not None and self.scopes & SHARED_SCOPES:
            raise _refused(
                "tenant",
                self.tenant,
                f"no tenant with the scopes {', '.join(sorted(SHARED_SCOPES))}: they reach what "
                "all tenants share",
            )
        if self.tenant == "":
            raise _refused("tenant", self.tenant, "a name, or none")
        for field in _NUMBERS:
            value = getattr(self, field)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise _refused(field, value, "a finite number above 0, or none")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for the key file."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "scopes": sorted(self.scopes),
            "tenant": self.tenant,
            "rate_per_s": self.rate_per_s,
            "max_body_bytes": self.max_body_bytes,
            "created_at": self.created_at,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ApiKey:
        """Read what `to_json` has written; raises InvalidRequest, TypeError, KeyError."""
        return cls(**{**plain, "scopes": frozenset(plain["scopes"])})


def new_key() -> str:
    """Make a key: a prefix that secret scanners can look for, and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key as it came in a header, hexadecimal.

    Header values are latin-1 by definition; a key that somebody chose is hashed as UTF-8, which
    is what a caller sends as bytes.
    """
    return hashlib.sha256(key.encode("latin-1")).hexdigest()


def service_key(secret: bytes) -> str:
    """Derive the key that the service itself, and the owner of its state folder, come in with.

    Whoever holds the signing secret can make this key: keep the one like the other.
    """
    return PREFIX + hmac.digest(secret, _SERVICE_DOMAIN, "sha256").hex()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a key file.

    Raises:
        DamagedKeys: It cannot be read, or what it holds is not a list of keys.
        FileNotFoundError: There is none.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != FILE_VERSION:
            raise ValueError(f"version {content['version']} is not known")
        keys = tuple(ApiKey.from_json(entry) for entry in content["keys"])
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have one name")
        return keys
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedKeys(
            f"the key file {path} cannot be used ({type(error).__name__}: {error}); restore it, "
            "or move it away and make new keys",
            field="keys_file",
            value=str(path),
        ) from error


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace a key file as a whole; only its owner can read it."""
    content = {"version": FILE_VERSION, "keys": [key.to_json() for key in keys]}
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        write_atomically(path, json.dumps(content, indent=1).encode())
    finally:
        os.umask(before)


def _refused(field: str, value: object, allowed: str) -> InvalidRequest:
    """Say what about a key is not allowed."""
    return InvalidRequest(
        f"{field}={value} is not allowed: {allowed}", field=field, value=value, allowed=allowed
    )
