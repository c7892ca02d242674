"""The life of a run: states, events, decisions (pure functions), and their storage.

controller: the transition function: state and event in, state and actions out.
counters: what a transition adds to the counters over all runs.
events: what can happen to a run, and the actions that can follow.
facts: what is known of a run beyond its state.
outcomes: what follows from each reason for which something ended.
policies: how often and when to retry, and which node keeps which ranks.
root_cause: which rank of a generation failed first.
states: the states, their data, and which may follow which.
store: runs and transitions in SQL.
view: the figures of a run as seen from outside.
"""
