"""The rank process: one device, one share of every step.

`main` is its entry, `setup` builds and loads everything, `loop` trains. `points` are where other work attaches to the
loop, `parts` what every run attaches. `agent_link` and `pulse` connect it to its agent; `guards` judge its losses,
`failures` its last error; `peak_memory` measures it.
"""
