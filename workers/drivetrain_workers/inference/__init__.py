"""Using a trained model on new inputs.

generation: text from a language model.
predict: `drivetrain predict`, and the sample at the end of a run.
"""
