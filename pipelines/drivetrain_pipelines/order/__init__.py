"""Which sample stands at which position of the global stream: integer arithmetic, whatever the world size."""
