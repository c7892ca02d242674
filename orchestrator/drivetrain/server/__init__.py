"""The HTTP API of a shared cluster.

access: roles and bearer tokens.
app: the application: routes, errors, limits.
cluster: routes of queue, nodes and tokens.
dependencies: dependencies of routes: the server's parts, and the caller's role.
limits: bounds on the size and the rate of requests.
logs: the output of ranks as a stream.
metrics: `/metrics` for Prometheus.
results: routes that compute something from a run: report, comparison, sync, predictions.
runs: routes of runs.
serve: starting the server.
"""
