"""Assessment of a trained model: scores, worst slices, a classic baseline, explanations.

assess: the assessment, in its own process.
baselines: classic methods on the same split.
explain: integrated gradients of decisions.
judging: the decisions of a model on the eval split.
pictures: figures of an assessment.
scores: scores of decisions, in total and by slice.
splits: samples in the form that jobs' functions and scikit-learn take.
"""
