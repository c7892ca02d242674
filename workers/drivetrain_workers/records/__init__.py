"""The records of a run and their files.

adjustments: changes of a run to its job: skipped batches, smaller micro-batches.
audit: proof from the ledger that every sample was used once per epoch.
ledger: the samples, world size and result of every step.
predictions: predictions of an evaluation as files.
run_folder: the names of the files of a run.
step_times: the times of the iterations of the training loop.
"""
