"""The agent of a node: owns the fork server and the rank processes."""
