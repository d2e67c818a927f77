"""The project's own measurements: ours beside other proxies, under one load, on one machine.

A program of its own, run by ``make bench``. It starts the sidecar as its users do and looks at it from outside; only
``benchmarks.line`` reaches into it. docs/benchmarks.md says what is measured and how to read it.
"""
