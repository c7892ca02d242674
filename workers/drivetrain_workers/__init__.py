"""Training workers: DeepSpeed engine, checkpoints, ranks and the agent that forks them."""
