"""What people's tools are told of the requests: metrics, traces and log lines.

Owns everything that knows OpenTelemetry. Must not know the data plane: it is told of each request once, when it is
over (`sidecar.record`), and reads figures through plain callables.
"""
