"""What Alembic runs for each of its commands: the revisions beside it, on a connection it is given.

`pipelines.migration` gives the connection, and has locked the ledger. Nothing imports this file.
"""

from __future__ import annotations

from alembic import context

from pipelines.migration import VERSION_TABLE
from pipelines.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
