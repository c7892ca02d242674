"""Alembic migrations; `versions` holds the steps.

env: how Alembic runs them.
"""
