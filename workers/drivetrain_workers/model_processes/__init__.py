"""Processes that load a trained model to answer one request."""
