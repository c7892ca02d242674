"""Logging runs to MLflow; training never waits for it.

destination: the interface of a tracking server; a tracker other than MLflow implements it.
embedded: MLflow's SQLite database in the home folder.
loss_plots: loss curves as plots.
mark: what of a spool a run on the tracking server has received.
mlflow_client: the MLflow calls that a run needs; each is idempotent.
mlflow_entries: metrics, parameters and tags as MLflow accepts them.
mlflow_errors: what the errors of MLflow mean.
mlflow_lookup: the experiment and the run in MLflow: found, created, or reported as deleted.
mlflow_names: names that MLflow accepts.
spool: records on disk, and the offset up to which they have been shipped.
totals: totals over all records of a spool, updated with each record.
tracker: a run's tracker: writes to the spool, ships to MLflow in the background.
tracking_uri: what the tracking URI of a run refers to.
"""
