"""What a run will need, estimated before it starts: memory, time, data, checkpoints, cost.

forecast: the forecast for a job, from a profile of its model and from runs like it.
hardware: what devices can do, by data sheet.
memory_estimate: memory of one worker, term by term.
pace: time of a step: computing, communicating, offloading.
plan: which settings fit, and which are best.
"""
