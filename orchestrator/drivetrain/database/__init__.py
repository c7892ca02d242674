"""The durable records: tables, migrations and database connections.

engine: SQLite and PostgreSQL connections.
files: the file of a SQLite database.
migration: migration to this version's tables.
tables: all tables.
"""
