"""A run on one page.

assessment: an assessment as text.
report: the HTML page of a run.
"""
