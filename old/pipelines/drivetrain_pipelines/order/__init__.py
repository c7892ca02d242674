"""The sample at each position of the global stream: integer arithmetic, independent of the world size.

mixture: the order over several sources, by weight, and the slices that ranks read.
permutation: permutations and keys with O(1) access.
source_order: the order of one source: epochs, lanes, windows.
"""
