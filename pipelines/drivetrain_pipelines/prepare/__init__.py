"""From raw records to shards, on Ray actors; each dataset version is made once.

audio: recordings to log-mel energies.
inputs: a user's inputs to a trained model, as samples.
packing: packing documents into samples of equal length.
prepare: the preparation of a dataset version.
preprocessor: the preprocessing actor.
record_reader: reading records by format or by the job's reader, then the job's transform.
samples: samples of the records of a chunk, by kind of data.
splitting: which samples are held out for evaluation.
tokenizer: byte-level BPE tokenizers.
"""
