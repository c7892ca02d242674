"""The durable records: tables, migrations, and how a database is opened.

engine: opening SQLite or PostgreSQL, and migrating it to this version's tables.
tables: all tables.
"""
