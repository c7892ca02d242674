"""The command line: verbs and a job file.

app: parsing of the verbs that work on this machine.
cluster: `drivetrain cluster`.
commands: the verbs on jobs and runs.
compare: `drivetrain diff`.
data: `drivetrain data` and `drivetrain audit`.
doctor: `drivetrain doctor`.
errors: errors as messages and exit codes.
main: the command itself, and its answer where the training packages are not installed.
paging: the first entries of a long list.
plan: `drivetrain plan`.
recipes: `drivetrain recipes`, `init` and `scaling-curve`.
remote: the verbs that talk to a server.
render: a run as a live line, plain lines or JSON.
server_verbs: parsing of the verbs that talk to a server or start one.
serving: `drivetrain server` and `drivetrain token`.
simulate: `drivetrain simulate`.
tables: tables for terminals and pipes.
"""
