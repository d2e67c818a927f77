"""The SLO pack as code: recording rules, alerts and dashboard, written into ``k8s/components`` by ``make pack``.

Owns everything that would otherwise be repeated by hand. What it writes is committed, so that nobody needs Python to
use it, and a test holds both together. Must not know the sidecar: it speaks of metrics as Prometheus names them.
"""
