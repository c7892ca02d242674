"""Bundled jobs: each folder has a job file and the code that it names."""
