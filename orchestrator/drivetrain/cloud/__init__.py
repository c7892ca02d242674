"""Clusters of cloud machines: a thin layer over Ray's own launcher that looks before it leaps."""
