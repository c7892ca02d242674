"""`drivetrain doctor`: problems of a machine or a cluster, and how to fix them.

cluster: checks of all nodes of a Ray cluster, individually and together.
collectives: all-reduces in separate processes.
finding: the result of a check.
machine: checks of one machine.
services: checks of the tracking server, the Drivetrain server and their ports.
"""
