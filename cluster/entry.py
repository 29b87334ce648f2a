"""Where the command `barp` begins: the environment first, numpy and Ray read it when imported."""

from __future__ import annotations

from cluster.environment import prepare_environment


def main() -> None:
    """Prepare the environment, then run the command line."""
    prepare_environment()
    from cluster.cli import run

    run()
