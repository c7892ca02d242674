"""The rank process: one device, one share of every step.

agent_link: the connection to the agent.
failures: classification of errors, with advice for users.
guards: detection of a bad loss, or one that no longer improves.
heartbeat: regular reports to the agent about the main thread.
loop: the training loop.
main: the entry of the process.
parts: standard callbacks at the points of the loop.
peak_memory: the peak memory of the process.
points: the points of the loop at which callbacks are attached.
setup: preparation for the first step: data, model, engine, newest state.
"""
