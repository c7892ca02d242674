"""Online transforms: they run on CPU actors during training and stream to the ranks over Arrow Flight.

actor: the transforming actor.
reader: the rank's side: ordered batches from actors that may fail.
transform: the user's transform of one sample, as a pure function.
wire: endpoints, sealed requests and the encoding of batches.
"""
