"""Logging runs to MLflow; training never waits for it.

addresses: what the address of a tracking server says.
curves: loss curves as pictures.
destination: the interface that a tracker other than MLflow implements.
embedded: MLflow's SQLite database in the home folder.
mlflow_client: the MLflow calls that a run needs; each may be repeated.
spool: records on disk, and how far they have been shipped.
totals: totals over all records of a spool, kept while records are added.
tracker: a run's tracker: to the spool at once, to MLflow in the background.
"""
