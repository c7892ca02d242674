"""The coordinator of a cluster: looks after runs, allocates nodes, carries out what the core decides.

actions: carrying out the actions of a run's core.
agent_events: listening to the agents of a run.
bookkeeping: budget, energy, checkpoints and account of a run.
conclusion: after training: uploads, curves, sample, assessment, registration.
coordinator: the Ray actor that looks after all runs.
gang_request: what a run asks of the scheduler.
live_run: what the parts of a run's loop share.
observer: what agent events mean for view, tracker and core.
preparation: before training: the dataset and the plan.
run_loop: the loop around the core of one run.
scheduler: the book of waiting and allocated runs, and passes of the policy over it.
wiring: puts the parts together.
"""
