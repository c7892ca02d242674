"""Where the time, money and energy of a run went.

budget: whether a run has spent its budget.
cost: worker time, dollars, energy and CO2 of a run.
goodput: every second of a run in exactly one class.
picture: the account as a picture.
statement: the account of a run: its time by class, and its cost.
sums: the account as sums that are kept while a run goes on.
words: the account in two lines of text.
"""
