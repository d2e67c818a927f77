"""llm-sidecar: a streaming data plane that stands before any LLM API."""

__version__ = "0.1.0"
