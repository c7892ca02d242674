"""The HTML report of a run.

assessment: the description of an assessment.
report: the HTML page of a run.
"""
