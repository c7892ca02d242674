"""`drivetrain doctor`: what is wrong with a machine or a cluster, and how to fix it.

cluster: checks of all nodes of a Ray cluster, alone and together.
collectives: all-reduces in separate processes.
finding: the result of a check.
machine: checks of one machine.
services: checks of the tracking server, the Drivetrain server and their ports.
"""
