"""Messages between agents, fork servers, ranks and the control plane.

events: the events that ranks, fork servers and agents report.
messages: messages over local sockets, as JSON.
processes: parent and child processes: no child outlives its owner.
reasons: the reasons why a generation or a run ended.
step_record: the record of one optimizer step.
"""
