"""Events can be searched by their time and, through a keyed digest, by their actor."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; release N-1 leaves them empty."""
    op.add_column("events", sa.Column("at", sa.String(24)))
    op.add_column("events", sa.Column("actor_key", sa.String(64)))
    op.create_index("events_by_actor", "events", ["actor_key", "seq"])
