"""Alembic migrations of the server's tables (mediaserver/store.py)."""
