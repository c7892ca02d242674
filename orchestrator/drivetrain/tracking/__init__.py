"""Logging runs to MLflow; training never waits for it.

curves: loss curves as pictures.
embedded: MLflow's SQLite database in the home folder.
mlflow_client: the MLflow calls that a run needs; each may be repeated.
spool: records on disk, and how far they have been shipped.
tracker: a run's tracker: to the spool at once, to MLflow in the background.
"""
