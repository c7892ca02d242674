"""The HTTP API of a shared cluster."""
