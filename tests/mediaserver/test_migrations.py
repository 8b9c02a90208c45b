"""The server's tables are brought up to date, wherever the last attempt was cut off."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from alembic import op

from mediaserver import store


@pytest.mark.parametrize("step", ["create_index", "second column"])
def test_a_migration_that_was_cut_off_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """SQLite keeps each step by itself, so half of one stays when the process dies."""
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(store.__file__).parent / "migrations"))
    config.attributes["url"] = url
    alembic.command.upgrade(config, "0001")
    add = op.add_column

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    def die_later(table: str, column: sa.Column[str]) -> None:
        if column.name == "actor_key":
            raise KeyboardInterrupt
        add(table, column)

    with monkeypatch.context() as patched:
        if step == "create_index":
            patched.setattr(op, "create_index", die)
        else:
            patched.setattr(op, "add_column", die_later)
        with pytest.raises(KeyboardInterrupt):
            store.migrate(url)
    store.migrate(url)
    store.migrate(url)
    engine = sa.create_engine(url)
    found = sa.inspect(engine)
    assert {"at", "actor_key"} <= {column["name"] for column in found.get_columns("events")}
    assert "events_by_actor" in {index["name"] for index in found.get_indexes("events")}
    engine.dispose()
