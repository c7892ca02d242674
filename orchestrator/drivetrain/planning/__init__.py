"""What a run will need, told before it begins: memory, time, data, checkpoints, cost. Pure functions."""
