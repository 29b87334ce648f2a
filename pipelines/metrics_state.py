"""What the metrics actor has counted, on disk: a restart goes on where the last process stood."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from policies.storage import open_folder

logger = logging.getLogger(__name__)

STATE_FILE: Final = "metrics.json"


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace what is on disk, whole or not at all; raises OSError."""
    open_folder(folder).write(STATE_FILE, json.dumps(state, allow_nan=False).encode())


def read_state(folder: Path) -> dict[str, Any] | None:
    """Read what is on disk; None where nothing is, or nothing that can be read."""
    try:
        found = json.loads((folder / STATE_FILE).read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s: counters begin anew: %s", STATE_FILE, error)
        return None
    return found
