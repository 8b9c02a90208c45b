"""Events can be searched by their time and, through a keyed digest, by their actor."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; release N-1 leaves them empty.

    SQLite keeps each step by itself: a process that died between them is gone on from.
    """
    found = sa.inspect(op.get_bind())
    there = {column["name"] for column in found.get_columns("events")}
    for column in (sa.Column("at", sa.String(24)), sa.Column("actor_key", sa.String(64))):
        if column.name not in there:
            op.add_column("events", column)
    if "events_by_actor" not in {index["name"] for index in found.get_indexes("events")}:
        op.create_index("events_by_actor", "events", ["actor_key", "seq"])
