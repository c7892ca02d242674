"""Preparation of raw records into shards on Ray actors. Each dataset version is made once.

Chunks of raw data become parts (record_reader, units, parts), whose facts are settled for the whole dataset (facts,
labels, number_types); then groups of their units become shards (samples, packing).

actor_pool: the preprocessing actors on Ray.
assumed: made-up samples, for plans without data.
facts: types, classes and the division into groups, from the facts of all parts.
first_samples: samples of the first records, to try a job.
inputs: a user's inputs for a trained model, as samples.
labels: the numbers of the labels.
number_types: one type for the numbers of a column.
origins: the sources, their files and splits, and the version that depends on them.
packing: packing documents into samples of equal length.
parts: what is known about the units of a chunk.
prepare: the preparation of a dataset version.
preprocessor: the preprocessing actor.
record_reader: records read by format or by the job's reader, changed by its transform and converted.
result: the manifest of a prepared dataset, and what was left out.
samples: samples from the units of a group.
splitting: selection of the samples that are held out for evaluation.
tokenizer: tokenizers, and how texts are encoded.
units: units from the records of a chunk.
user_functions: functions of the job.
"""
