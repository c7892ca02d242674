"""Conversions of raw values: exactly what the value says, or a sentence why not. No value is guessed, cut or replaced.

column: what a conversion takes and returns.
contents: digests of files.
images: encoded or decoded images to pixels.
numbers: numbers and arrays of numbers.
recordings: encoded or decoded recordings to samples, and their log-mel energies.
texts: texts, labels and group keys.
"""
