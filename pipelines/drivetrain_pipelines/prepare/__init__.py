"""Preparation of raw records into shards on Ray actors. Each dataset version is made once.

assumed: made-up samples, for plans without data.
audio: recordings to log-mel energies.
inputs: a user's inputs for a trained model, as samples.
packing: packing documents into samples of equal length.
prepare: the preparation of a dataset version.
preprocessor: the preprocessing actor.
record_reader: records read by format or by the job's reader, then changed by the job's transform.
samples: samples from the records of a chunk, by kind of data.
splitting: selection of the samples that are held out for evaluation.
tokenizer: byte-level BPE tokenizers.
"""
