"""The job: its file, its code, and the copies that a run keeps of both.

bundle: a job's folder as one file, named by its digest.
code_checks: checks that the functions named in a job exist.
files: files named in a job, stored by digest.
loading: loading and validation of a job file.
provenance: package versions and git state at the start of a run.
recipes: the bundled jobs.
spec: the job file as a whole.
validation_errors: one clear sentence for what pydantic finds.
"""
