"""The coordinator of a cluster: looks after runs, gives them places, carries out what their core decides."""
