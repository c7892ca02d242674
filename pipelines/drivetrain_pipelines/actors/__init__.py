"""Ray actors, and what their failures mean.

ray_failures: Ray's errors in words.
"""
