"""The steps from an empty database to this version's tables.

m0001_runs: runs and their transitions.
m0002_users: users of runs, tokens, usage.
m0003_lookups: indexes for queries of runs, and counters of transitions.
"""
