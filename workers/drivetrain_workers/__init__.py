"""Training workers: DeepSpeed engine, checkpoints, ranks and the agent that forks them.

classification: functions for classification jobs.
errors: the errors of training.
spec: the `model`, `training` and `checkpoint` sections of a job file.
"""
