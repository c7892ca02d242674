"""Transforms that run while a run trains: on CPU actors, streamed to the ranks over Arrow Flight."""
