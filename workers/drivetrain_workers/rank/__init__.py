"""The rank process: one device, one share of every step.

agent_link: the connection to the agent.
failures: why a rank failed, and what to do about it.
guards: noticing a bad loss, or one that no longer falls.
loop: the training loop.
main: the entry of the process.
parts: what every run attaches to the points of the loop.
peak_memory: the peak memory of the process.
points: the points of the loop to which other work attaches.
pulse: regular reports to the agent of where the main thread is.
setup: everything before the first step: data, model, engine, newest state.
"""
