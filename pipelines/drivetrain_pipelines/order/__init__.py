"""Which sample is at which position of the global stream: integer arithmetic, independent of the world size.

mixture: several streams in one, by weight, and the slices that ranks read.
permutation: permutations and keys with O(1) access.
streams: the order of one stream: epochs, lanes, windows.
"""
