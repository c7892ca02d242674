"""The durable records: tables, migrations and database connections.

engine: SQLite and PostgreSQL connections.
migration: migration to this version's tables.
tables: all tables.
"""
