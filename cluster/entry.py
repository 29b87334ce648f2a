"""Where the command `barp` begins: the environment first, numpy and Ray read it when imported."""

from __future__ import annotations

import sys

from cluster.environment import prepare_environment


def main() -> None:
    """Prepare the environment, then run the command line."""
    # `barp cluster` joins a cluster that somebody else started; all other commands start their own.
    prepare_environment(private=sys.argv[1:2] != ["cluster"])
    from cluster.cli import run

    run()
