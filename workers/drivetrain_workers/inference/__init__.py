"""Inference with a trained model.

generation: text from a language model.
predict: `drivetrain predict`, and the sample at the end of a run.
"""
