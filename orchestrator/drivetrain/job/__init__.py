"""The job: its file, its code, and what a run keeps of both."""
