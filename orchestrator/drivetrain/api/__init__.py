"""What programs call: local runs, a remote server, datasets, plans, comparisons.

client: a client of a Drivetrain server.
compare: the differences between two runs.
datasets: prepared datasets: make, find, verify, show, remove, audit.
plans: the plan of a job, without a run.
runs: the Python API: run, resume and validate jobs.
scaling_curve: runs on growing shares of the data, and the power law through their losses.
session: a connection to Ray and to the coordinator: submit, follow and cancel runs.
"""
