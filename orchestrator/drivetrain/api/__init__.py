"""The Python API: runs on this machine or on a server, datasets, plans, comparisons.

`drivetrain.connect` returns a `Runs`: the runs of this machine's home, or of a server, with the same methods.

client: the runs of a server, over HTTP.
compare: the differences between two runs.
connect: the choice between the runs of this machine and those of a server.
datasets: prepared datasets: make, find, verify, show, remove, audit.
given_inputs: the inputs of `drivetrain predict`: texts, and the files of folders and globs.
interface: `Runs`, and the results of its methods.
local: the runs of this machine's home.
plans: the plan of a job, without a run.
predictions: predictions of a trained model, made in a separate process.
rank_logs: the output of a run's ranks, while it grows.
run_info: runs as their records and their files describe them, without a coordinator.
runs: run, resume and validate jobs on this machine, and follow them.
scaling_curve: runs on growing shares of the data, and the power law of their losses.
session: a connection to Ray and to the coordinator: submit, follow and cancel runs.
transport: requests to a server.
"""
