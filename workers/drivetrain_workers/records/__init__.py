"""What a run records about itself, and where.

adjustments: what a run has changed of its job: skipped batches, smaller micro-batches.
audit: proof from the ledger that every sample was used once per epoch.
ledger: the samples, world size and result of every step.
predictions: predictions of an evaluation as files.
run_folder: the names of the files of a run.
step_times: what the iterations of the training loop spend their time on.
"""
