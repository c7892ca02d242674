"""Alembic migrations; `versions` holds the steps.

env: the environment in which Alembic runs them.
"""
