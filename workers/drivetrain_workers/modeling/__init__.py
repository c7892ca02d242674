"""The job's model, loss and metrics.

context: information for a job's functions about their call.
model: the job's network.
model_flags: modes of modules and frozen parameters; evaluation mode.
model_input: columns of a batch as the model takes them.
objective: loss, weight, metrics and predictions of the job.
"""
