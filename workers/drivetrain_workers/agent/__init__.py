"""The agent of a node: owns the fork server and the rank processes.

agent: the Ray actor.
event_log: the numbered events that the coordinator reads.
fork_server: the warm parent process of the ranks.
fork_server_process: the fork server as the agent sees it: its process and sockets.
hang_watch: telling a hanging rank from a long step.
node: what the agent needs of its node and of Ray.
node_meter: load and energy of the node.
peers: copies of ranks' states in another node's memory.
rank_supervisor: starting, following and ending the rank processes.
"""
