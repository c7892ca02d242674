"""The job: its file, its code, and what a run keeps of both.

bundle: a job's folder as one file, named by its content.
code_checks: whether the functions that a job names exist.
files: files that a job names, kept by content.
loading: reading and checking a job file.
provenance: package versions and git state that a run was started with.
recipes: the bundled jobs.
spec: the job file as a whole.
"""
