"""Clusters of cloud machines with Ray's cluster launcher, and checks before their start.

cluster_file: a cluster file: its node groups and prices.
launcher: Ray's launcher: create, list and remove nodes.
notices: the interruption notice of a cloud for a spot machine.
preflight: checks of credentials, machine types and quotas.
safety: checks for unsafe settings of a cluster file.
"""
