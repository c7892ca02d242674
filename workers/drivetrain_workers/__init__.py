"""Training workers: DeepSpeed engine, checkpoints, ranks and the agent that forks them.

classification: functions for jobs that tell classes apart.
errors: the errors of training.
spec: the `model`, `training` and `checkpoint` sections of a job file.
"""
