"""Builds the encoder where there is none yet: into a folder, or into an object store."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from policies.encoder_files import (
    EncoderKind,
    checked_manifest,
    has_encoder,
    local_encoder,
    upload_encoder,
)
from policies.errors import RouterError
from policies.storage import is_remote


class LaunchError(RouterError):
    """The service cannot be started here; the message says what to change."""

    code = "launch_error"


def ensure_encoder(
    place: str | Path, *, kind: EncoderKind = "minilm", build_in: Path | None = None
) -> None:
    """Build an encoder unless it is there already.

    In a process of its own: torch and sentence-transformers would stay in ours, 500 MB of them.

    Args:
        place: Its folder, or an s3:// URL.
        kind: Which sort of encoder.
        build_in: A folder on this machine to build in, where `place` is a URL.

    Raises:
        LaunchError: It cannot be built, the place holds one of another kind, or is away.
        ArtifactError: What the place holds is damaged.
    """
    if _has_encoder(place):
        if (found := checked_manifest(local_encoder(place)).kind) != kind:
            raise LaunchError(
                f"encoder={kind}: {place} holds {found}, whose policies know no other",
                field="encoder",
                value=kind,
                allowed=f"{found}, or another state_dir",
            )
        return
    if not is_remote(place):
        _build_encoder(local_encoder(place), kind)
        return
    with tempfile.TemporaryDirectory(prefix="encoder-", dir=build_in) as folder:
        _build_encoder(Path(folder), kind)
        try:
            upload_encoder(Path(folder), str(place))
        except OSError as error:
            raise _storage_away(place, error) from error


def _has_encoder(place: str | Path) -> bool:
    """Tell whether there is an encoder; raises LaunchError where the place does not answer."""
    try:
        return has_encoder(place)
    except OSError as error:
        raise _storage_away(place, error) from error


def _storage_away(place: str | Path, error: OSError) -> LaunchError:
    """Say that folder or object store cannot be used."""
    return LaunchError(
        f"{place} cannot be used: {str(error)[:300]}",
        field="encoder_dir",
        value=str(place),
        allowed="a folder or object store that can be read and written",
    )


def _build_encoder(folder: Path, kind: EncoderKind) -> None:
    """Run the build; raises LaunchError with the last line of what it said."""
    code = "import sys, pathlib, policies.encoder as e; "
    code += "e.build_encoder(sys.argv[1], pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-P", "-c", code, kind, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LaunchError(
            f"the encoder could not be built: {last[-500:]}",
            field="encoder_dir",
            value=str(folder),
        )
