"""The durable records: tables, migrations and database connections.

engine: SQLite and PostgreSQL connections, and migration to this version's tables.
tables: all tables.
"""
