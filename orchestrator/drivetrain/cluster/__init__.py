"""Use of Ray: nodes, gangs, agents.

addresses: the cluster to join, and what answers at an address.
autoscaler: requests to Ray's autoscaler for the nodes that gangs need.
connection: the connection of a process to a cluster, which it joins or starts.
devices: the hardware of the workers of a Ray cluster.
gang: the agents of a run as Ray actors in one placement group.
nodes: the nodes of the cluster, and draining of a node.
protocols: the interfaces of gang and agent for the loop of a run.
ray_internals: all uses of Ray beyond its public API.
temporary_folder: the folder of Ray's temporary files.
"""
