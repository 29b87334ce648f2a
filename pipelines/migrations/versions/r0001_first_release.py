"""The tables as the first release made them.

A ledger of a time before revisions has them already, and is left as it is.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from policies.errors import Conflict

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create what is missing."""
    _decisions()
    _outcomes()
    create = _creator("interactions")
    create(
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("decision_id", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("quality", sa.Double),
        sa.Column("cost_usd", sa.Double),
        sa.Column("latency_ms", sa.Double),
        sa.Column("matured_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("decision_id", "revision"),
    )
    _creator("price_tables")(
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("arms", sa.Text, nullable=False),
    )
    totals = ("decisions", "outcomes", "joined", "duplicates", "expired", "interactions")
    _creator("tallies")(
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in totals),
    )
    _creator("sequence")(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Refuse: below this there is no ledger."""
    raise Conflict(
        "the first revision cannot be undone: that would drop the ledger with all that is in it",
        field="to",
        value="base",
        allowed=revision,
    )


def _decisions() -> None:
    """Create the tables of decisions, all of them and those still open."""
    _creator("decisions")(
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("decided_at", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("session", sa.Text),
        sa.Column("prompt_hash", sa.Text, nullable=False),
        sa.Column("prompt_characters", sa.Integer, nullable=False),
        sa.Column("w_quality", sa.Double, nullable=False),
        sa.Column("w_cost", sa.Double, nullable=False),
        sa.Column("context", sa.LargeBinary, nullable=False),
        sa.Column("encoder_id", sa.Text, nullable=False),
        sa.Column("arms_offered", sa.Text, nullable=False),
        sa.Column("pmf", sa.LargeBinary, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("propensity", sa.Double, nullable=False),
        sa.Column("policy_version", sa.Integer, nullable=False),
        sa.Column("price_version", sa.Integer, nullable=False),
        sa.Column("closes_at", sa.BigInteger, nullable=False),
    )
    _creator("open_decisions")(
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("closes_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_open_decisions_closes_at", "open_decisions", ["closes_at"], if_not_exists=True
    )


def _outcomes() -> None:
    """Create the table of outcomes."""
    _creator("outcomes")(
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("joined", sa.Boolean, nullable=False),
        sa.Column("quality", sa.Double),
        sa.Column("cost_usd", sa.Double),
        sa.Column("tokens_in", sa.BigInteger),
        sa.Column("tokens_out", sa.BigInteger),
        sa.Column("latency_ms", sa.Double),
        sa.Column("final", sa.Boolean, nullable=False),
        sqlite_with_rowid=False,
    )
    waiting = sa.text("joined IS false")
    op.create_index(
        "outcomes_waiting",
        "outcomes",
        ["received_at"],
        sqlite_where=sa.text("joined IS 0"),
        postgresql_where=waiting,
        if_not_exists=True,
    )


def _creator(table: str) -> Any:
    """Return what creates a table of that name, where there is none."""

    def create(*parts: Any, **dialect: Any) -> None:
        op.create_table(table, *parts, if_not_exists=True, **dialect)

    return create
