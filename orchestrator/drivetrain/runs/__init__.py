"""The life of a run: states, events, decisions (pure), and their storage."""
