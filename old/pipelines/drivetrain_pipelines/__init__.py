"""Data plane: sources, preparation on actors, Arrow shards, sample order, streaming. Never imports torch.

errors: the errors of the data plane, and the root of all errors.
spec: the `data` section of a job file.
user_code: loading of functions that a job file names, and the check for the training packages.
"""
