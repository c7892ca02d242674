"""Which run trains when and where: pure functions.

model: nodes, requests, allocations and decisions.
picture: simulated policies as a picture.
policy: one pass of the scheduler.
precedence: the order of waiting runs: priority, age, fair share.
room: free resources, and where a gang fits.
rules: queues, users and limits that an administrator sets.
simulation: the policy on a virtual clock, over a trace of jobs.
status: the cluster as it is now: nodes, who has them, and who waits.
strikes: nodes on which gangs keep failing are avoided for a while.
trace: traces of jobs as CSV files.
"""
