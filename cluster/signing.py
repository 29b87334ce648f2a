"""The secret that signs decision ids: read, made once, and those of before."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from cluster.places import places
from cluster.settings import Settings
from policies.errors import RouterError

# As `services.decision_ids` wants it.
MIN_SECRET_BYTES: Final = 16


class DamagedSecret(RouterError):
    """A signing secret that was cut off, or was never whole."""

    code = "damaged_secret"


def signing_secret(settings: Settings) -> bytes:
    """Return the key that signs decision ids.

    Taken from the settings, else from the state folder, where the first use makes one of 32
    bytes that only this user can read.

    Raises:
        DamagedSecret: What is there is shorter than any secret that was made.
    """
    place = "signing_secret"
    if settings.signing_secret is not None:
        secret = settings.signing_secret.get_secret_value().encode()
    else:
        secret_file = places(settings).secret_file
        if not secret_file.exists():
            _make_secret(secret_file)
        secret, place = secret_file.read_bytes(), str(secret_file)
    if len(secret) < MIN_SECRET_BYTES:
        raise DamagedSecret(
            f"{place} holds {len(secret)} bytes: put the right secret back; with another one, or "
            "a new one, the decision ids that are out become unknown",
            field="signing_secret",
            value=f"{len(secret)} bytes",
            allowed=f"{MIN_SECRET_BYTES} bytes or more",
        )
    return secret


def _make_secret(secret_file: Path) -> None:
    """Write a new secret, whole or not at all, unless somebody else has been quicker."""
    secret_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=secret_file.parent, prefix=".secret.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(name, secret_file)
    finally:
        Path(name).unlink()


def retired_secrets(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys that signed decision ids before."""
    if settings.retired_signing_secrets is None:
        return ()
    return tuple(
        one.strip().encode()
        for one in settings.retired_signing_secrets.get_secret_value().split(",")
        if one.strip()
    )
