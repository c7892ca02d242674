"""The job: its file, its code, and the copies that a run keeps of both.

bundle: a job's code and data as one file, named by its digest.
code_checks: checks of the functions named in a job.
code_files: the files that are the job's code.
files: files named in a job, stored by digest.
ignore_rules: the rules of `.gitignore` files.
loading: loading and validation of a job file.
modules: the modules of the code, and the imports between them.
provenance: package versions and git state at the start of a run.
recipes: the bundled jobs.
secret_names: names of files that hold secrets.
shadowed: names that a module of a job cannot have.
snapshots: the copy of its code that a run keeps.
spec: the job file as a whole.
trial: a job tried on this machine.
validation_errors: one clear sentence for what pydantic finds.
"""
