"""The life cycle of a run: states, events, transitions (pure functions), and their storage.

controller: the transition function from state and event to state and actions.
counters: what a transition adds to the counters over all runs.
events: events of a run, and the actions that can follow.
facts: facts of a run beyond its state.
outcomes: status and number of retries for each reason.
policies: how often and when to retry, and which node keeps which ranks.
root_cause: which rank of a generation failed first.
states: the states, their data, and the allowed transitions.
store: runs and transitions in SQL.
view: the metrics of a run as clients see them.
"""
