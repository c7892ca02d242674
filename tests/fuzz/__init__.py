"""Mutated inputs: used as they are, refused with a sentence, or counted as bad; never a silent difference."""
