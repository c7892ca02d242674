"""Data plane: sources, preparation on actors, Arrow shards, sample order, streaming. Never imports torch."""
