"""What agents, fork servers, ranks and the control plane send to each other.

events: the events that ranks, fork servers and agents report.
messages: messages over local sockets, as JSON.
processes: ties between processes: no child outlives its owner.
reasons: why a generation or a run ended.
step_record: the record of one optimizer step.
"""
