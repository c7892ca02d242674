"""The rank process: one device, one share of every step."""
