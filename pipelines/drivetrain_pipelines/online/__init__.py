"""Transforms that run while a run trains: on CPU actors, streamed to the ranks over Arrow Flight.

actor: the transforming actor.
reader: a rank's side: batches in order, from actors that may die.
transform: the user's transform of one sample, as a pure function.
wire: endpoints, sealed requests and batches on the wire.
"""
