"""The command line: verbs and a job file.

app: the root: options, exit codes, groups of verbs.
cluster: `drivetrain cluster`.
commands: the verbs on the checkpoints of local runs.
compare: `drivetrain diff`.
completion: completions of the shell.
data: `drivetrain data` and `drivetrain audit`.
doctor: `drivetrain doctor`.
errors: errors as messages, and exit codes.
help: the help text, grouped by panels.
inspect_group: parsing of the verbs that show runs and work on their results.
jobs: `drivetrain run` and `drivetrain validate`.
main: the command itself, and its answer where the training packages are not installed.
options: arguments and options that several verbs share.
other_groups: parsing of the verbs on data and clusters, and for development.
paging: the first entries of a long list.
place: where a verb finds its runs: local, or on a server.
plan: `drivetrain plan`.
recipes: `drivetrain recipes`, `init` and `scaling-curve`.
remote: the verbs that need a server: submit, queue, nodes.
render: a run as a live line, plain lines or JSON.
run_group: parsing of the verbs that start, change and check runs.
run_verbs: the verbs on runs, which work alike for local runs and for those of a server.
schema: `drivetrain schema`.
serving: `drivetrain server` and `drivetrain token`.
simulate: `drivetrain simulate`.
streams: standard streams that are closed, full, or lack a character.
tables: tables for terminals and pipes.
version: versions of what is installed.
words: plurals and ages.
"""
