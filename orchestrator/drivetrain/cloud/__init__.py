"""Clusters of cloud machines, by Ray's own launcher, with checks before it starts anything.

cluster_file: a cluster file: its nodes, their prices.
launcher: Ray's launcher: create nodes, list them, remove them.
notices: the notice that a cloud gives before it takes a spot machine back.
preflight: whether the cloud would accept the cluster.
safety: refusal of unsafe settings of a cluster file.
"""
