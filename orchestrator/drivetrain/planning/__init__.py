"""Estimates for a run before its start: memory, time, data, checkpoints, cost.

communication: bytes that workers send in a step.
forecast: the forecast for a job, from a profile of its model and from similar past runs.
hardware: devices and their data sheets.
memory_estimate: memory of one worker, term by term.
pace: time per step: computing, communicating, offloading.
plan: the settings that fit, and the best of them.
"""
