"""The job's model, loss and metrics.

context: what a job's functions can ask about their call.
model: the job's network.
objective: loss, weight, metrics and predictions of the job.
"""
