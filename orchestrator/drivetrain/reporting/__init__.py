"""The HTML report of a run.

assessment: the description of an assessment.
report: the HTML page of a run.
tracking: what a tracking server has of a run.
"""
