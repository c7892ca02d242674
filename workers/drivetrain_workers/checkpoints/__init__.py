"""Checkpoints that any world size and any ZeRO stage can load, that are always complete, and that contain no pickle.

agreement: choice of the checkpoint that all ranks of a gang load.
load: loading by copying the overlaps of saved and owned state.
manifest: the JSON files of a checkpoint.
memory_copies: copies of ranks' states in the node's memory.
policy: when to save, and which checkpoints to keep.
proof: verification after a resume that the loaded state is the saved one.
remote: checkpoints in object storage.
save: saving in the background.
snapshot: a consistent copy of a rank's state in host memory.
store: checkpoint folders: commit, verification, retention.
upload: uploads in the background.
"""
