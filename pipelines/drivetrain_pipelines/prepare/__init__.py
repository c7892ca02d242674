"""From raw records to shards, on Ray actors; a dataset version is made once and found ever after."""
