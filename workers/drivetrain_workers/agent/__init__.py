"""The agent of a node: owns the fork server and the rank processes.

agent: the Ray actor.
event_log: the numbered events that the coordinator reads.
fork_server: the warm parent process of the ranks.
fork_server_process: the agent's handle of the fork server: its process and sockets.
hang_watch: detection of hanging ranks.
node: the node and Ray as the agent uses them.
node_meter: load and energy of the node.
peers: copies of ranks' states in the memory of another node.
rank_supervisor: start, supervision and end of the rank processes.
"""
