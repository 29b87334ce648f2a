"""Options that several benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

DEFAULT_CACHE_DIR: Final = Path(".barp/bench")

CacheOption = Annotated[
    Path, typer.Option(help="Folder for encoders and encoded prompts, kept between runs.")
]
