"""Canaries, deferred decisions, corrections, and how far retention has come.

A ledger of a time before revisions may have some of it: it got the columns that were missing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from policies.errors import Conflict

revision = "0002"
down_revision = "0001"

NONE = sa.text("0")
# By table: what the first release did not know.
ADDED: dict[str, tuple[sa.Column[object], ...]] = {
    "decisions": (
        sa.Column("champion_version", sa.Integer),
        sa.Column("canary_version", sa.Integer),
        sa.Column("canary_share", sa.Double, nullable=False, server_default=NONE),
        sa.Column("deferred", sa.Boolean, nullable=False, server_default=sa.false()),
    ),
    "open_decisions": (
        sa.Column("tenant", sa.Text, nullable=False, server_default=""),
        sa.Column("arm", sa.Text, nullable=False, server_default=""),
        sa.Column("price_version", sa.Integer, nullable=False, server_default=NONE),
        sa.Column("deferred", sa.Boolean, nullable=False, server_default=sa.false()),
    ),
    "outcomes": (
        sa.Column("correction", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("activate", sa.Boolean, nullable=False, server_default=sa.false()),
    ),
    "tallies": (sa.Column("dropped", sa.BigInteger, nullable=False, server_default=NONE),),
    "sequence": (
        sa.Column("forgotten_seq", sa.BigInteger, nullable=False, server_default=NONE),
        sa.Column("forgotten_at", sa.BigInteger, nullable=False, server_default=NONE),
    ),
}
DECIDED_AT = "ix_decisions_decided_at"


def upgrade() -> None:
    """Add what is missing, each column with a default: the first release goes on beside it."""
    present = sa.inspect(op.get_bind())
    for table, columns in ADDED.items():
        known = {column["name"] for column in present.get_columns(table)}
        missing = [column for column in columns if column.name not in known]
        for column in missing:
            op.add_column(table, column)
        if table == "open_decisions":
            _fill([str(column.name) for column in missing])
    op.create_index(DECIDED_AT, "decisions", ["decided_at"], if_not_exists=True)


def downgrade() -> None:
    """Take the tables back to the first release; refused once decisions have left the ledger."""
    gone = op.get_bind().scalar(sa.text("SELECT max(forgotten_at) FROM sequence"))
    if gone:
        raise Conflict(
            "decisions have left this ledger, and the first release would not know: it would "
            "take feedback on them for early",
            field="to",
            value="0001",
            allowed=revision,
        )
    op.drop_index(DECIDED_AT, "decisions")
    for table, columns in ADDED.items():
        for column in columns:
            op.drop_column(table, str(column.name))


def _fill(added: list[str]) -> None:
    """Copy what open decisions have now from the decisions themselves."""
    if not added:
        return
    columns = ", ".join(
        f"{name} = (SELECT {name} FROM decisions "
        "WHERE decisions.decision_id = open_decisions.decision_id)"
        for name in added
    )
    op.execute(sa.text(f"UPDATE open_decisions SET {columns}"))
