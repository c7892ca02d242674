"""The durable records: tables, migrations, and how a database is opened."""
