"""Ray as Drivetrain uses it: nodes, gangs, agents.

autoscaler: requests to Ray's autoscaler for the nodes that gangs need.
devices: the devices of the workers of a Ray cluster.
gang: the agents of a run as Ray actors in one placement group.
nodes: the nodes of the cluster, and how one leaves.
protocols: the cluster as a run's loop sees it: interfaces of gang and agent.
ray_internals: everything that is used of Ray beyond its public API.
"""
