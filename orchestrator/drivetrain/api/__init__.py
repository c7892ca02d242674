"""What programs call: local runs, a remote server, datasets, plans, comparisons."""
