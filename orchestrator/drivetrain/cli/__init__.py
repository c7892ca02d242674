"""The command line: verbs and a file."""
