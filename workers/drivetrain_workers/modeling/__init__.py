"""The job's model, loss and metrics."""
