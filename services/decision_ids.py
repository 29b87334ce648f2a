"""Decision ids that only this service can issue, and prompt hashes that only it can repeat."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from typing import Final

import uuid_utils

from policies.errors import UnknownDecision

TAG_BYTES: Final = 12  # 96 bits: out of reach of guessing, and 16 characters without padding
HASH_BYTES: Final = 16
# One secret, several uses: the prefix keeps a prompt from ever being read as an id, or the reverse.
_ID_DOMAIN: Final = b"decision-id\x00"
_PROMPT_DOMAIN: Final = b"prompt-hash\x00"
_CANARY_DOMAIN: Final = b"canary\x00"


class DecisionIds:
    """Issues and verifies `<UUIDv7>.<HMAC over it and the tenant>`, without storing anything."""

    def __init__(self, secret: bytes, *, retired: Sequence[bytes] = ()) -> None:
        """Take the signing keys, the same on every replica; 16 bytes at least each.

        Args:
            secret: Signs from now on.
            retired: Signed before; ids of theirs are still accepted, none is issued.
        """
        for key in (secret, *retired):
            if len(key) < HASH_BYTES:
                raise ValueError(f"the signing secret needs {HASH_BYTES} bytes, it has {len(key)}")
        self._key, self._retired = _keyed(secret), tuple(map(_keyed, retired))

    def issue(self, tenant: str) -> str:
        """Make a new id for a tenant; ids sort by the time they were made."""
        name = str(uuid_utils.uuid7())
        return f"{name}.{_tag(self._key, name, tenant)}"

    def verify(self, decision_id: str, tenant: str) -> None:
        """Accept what `issue` made for this tenant.

        Raises:
            UnknownDecision: The id is forged, damaged, or another tenant's.
        """
        name, _, tag = decision_id.partition(".")
        signed = (_tag(key, name, tenant).encode() for key in (self._key, *self._retired))
        if not any(hmac.compare_digest(one, _utf8(tag)) for one in signed):
            raise UnknownDecision(
                "decision_id was not issued here for this tenant",
                field="decision_id",
                value=decision_id,
                allowed="the decision_id of a route reply, with the tenant it was asked for",
            )

    def prompt_hash(self, prompt: str) -> str:
        """Hash a prompt, salted with the secret: equal prompts agree, nobody else can test one."""
        digest = _digest(self._key, _PROMPT_DOMAIN + _utf8(prompt))
        return digest[:HASH_BYTES].hex()

    def canary_draw(self, unit: str, *, tenant: str, canary_version: int) -> float:
        """Map a unit to a number in [0, 1): below the canary's share, the canary decides for it.

        The same on every replica and for as long as this canary runs; drawn anew for the next
        one. Salted with the secret, so that no caller can choose their side.

        Args:
            unit: A session, or the id of a decision that belongs to none.
            tenant: Whose it is: two tenants' sessions of one name are two units.
            canary_version: The version on trial.
        """
        name = _utf8(tenant)
        message = b"%s%d\x00%d\x00%s" % (_CANARY_DOMAIN, canary_version, len(name), name)
        digest = _digest(self._key, message + _utf8(unit))
        # 53 bits: what a float holds exactly, so that the number stays below one.
        return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


def _keyed(secret: bytes) -> hmac.HMAC:
    """Take up a key once: to copy what comes of it takes half the time of `hmac.digest`."""
    return hmac.new(secret, digestmod="sha256")


def _digest(key: hmac.HMAC, message: bytes) -> bytes:
    """Sign a message."""
    signing = key.copy()
    signing.update(message)
    return signing.digest()


def _tag(key: hmac.HMAC, name: str, tenant: str) -> str:
    """Sign name and tenant; the length keeps the two from running into each other."""
    signed = _utf8(name)
    message = _ID_DOMAIN + len(signed).to_bytes(4, "big") + signed + _utf8(tenant)
    digest = _digest(key, message)
    return base64.urlsafe_b64encode(digest[:TAG_BYTES]).decode()


def _utf8(text: str) -> bytes:
    """Encode any string, lone surrogates included, so that a forged one cannot raise."""
    return text.encode("utf-8", "surrogatepass")
