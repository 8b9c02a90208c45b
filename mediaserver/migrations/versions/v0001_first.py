"""The first schema: events, kept answers, invitations, issued tokens, webhooks, rooms."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("room", sa.String(256)),
        sa.Column("recording", sa.String(36)),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_tenant", "events", ["tenant", "seq"])
    op.create_index("events_by_recording", "events", ["recording", "seq"])
    op.create_table(
        "answers",
        sa.Column("scope", sa.String(64), primary_key=True),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("made_s", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary),
    )
    op.create_table(
        "invites",
        sa.Column("selector", sa.String(64), primary_key=True),
        sa.Column("verifier", sa.String(64), nullable=False),
        sa.Column("expires_s", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "issued_tokens",
        sa.Column("token_id", sa.String(256), primary_key=True),
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("participant", sa.String(64), nullable=False),
        sa.Column("expires_s", sa.BigInteger, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
    )
    op.create_index("issued_by_participant", "issued_tokens", ["tenant", "participant"])
    op.create_table(
        "rooms",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(256), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "webhooks",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
