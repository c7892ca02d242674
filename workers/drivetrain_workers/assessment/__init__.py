"""How good a trained model is: scores, worst slices, a classic baseline, explanations.

assess: the assessment, in its own process.
baselines: classic methods on the same split.
explain: integrated gradients of decisions.
judging: decisions of a model on the eval split.
pictures: pictures of an assessment.
scores: scores of decisions, over all and by slice.
splits: samples in the form that jobs' functions and scikit-learn take.
"""
