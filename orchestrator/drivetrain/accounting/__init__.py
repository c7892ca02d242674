"""Time, cost and energy of a run.

budget: check whether a run has spent its budget.
cost: worker time, dollars, energy and CO2 of a run.
goodput: every second of a run in exactly one class.
plot: the account as a plot.
run_account: the account of a run: its time by class, and its cost.
running_totals: the account as totals that are updated while a run is active.
summary: the account in two lines of text.
"""
