"""The coordinator of a cluster: manages runs, allocates nodes, performs the actions of the core.

actions: the actions of a run's core.
agent_events: listeners for the events of a run's agents.
bookkeeping: budget, energy, checkpoints and account of a run.
conclusion: after training: uploads, curves, sample, assessment, registration.
coordinator: the Ray actor that manages all runs.
failures: classification of the errors that the control plane meets.
gang_request: the scheduling request of a run.
late_tracking: what ended runs could not send to the tracking server, sent when it answers again.
live_run: state shared by the parts of a run's loop.
observer: interpretation of agent events for view, tracker and core.
preparation: before training: the dataset and the plan.
run_loop: the loop around the core of one run.
scheduler: the tables of queued and allocated runs, and the scheduling passes.
wiring: construction of all parts.
"""
