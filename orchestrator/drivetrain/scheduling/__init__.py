"""Scheduling of runs on nodes: pure functions.

free_resources: free resources per node, and the placement of a gang.
model: nodes, requests, allocations and decisions.
plot: simulated policies as a plot.
policy: one pass of the scheduler.
priority: the order of queued runs: priority, age, fair share.
quarantine: nodes with repeated failures, which are not used for some time.
rules: queues, users and limits that an administrator sets.
simulation: the policy on a virtual clock, over a trace of jobs.
status: the current state of the cluster: nodes, allocations and queue.
trace: traces of jobs as CSV files.
"""
