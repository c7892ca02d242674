"""Who runs when, and where: pure functions over what is asked for and what is there."""
