"""TLS to upstreams: what is trusted, which name is asked for, and plain words for what went wrong."""

from __future__ import annotations

import ssl

from sidecar.settings import Upstream


def client_context(upstream: Upstream) -> ssl.SSLContext:
    """The context of one upstream, built once. Raises ValueError where its CA file cannot be loaded."""
    ca_file = upstream.tls.ca_file or None
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError, for a file that holds no certificate, is one too
        why = "holds no valid certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(f"upstream {upstream.name}: tls.ca_file {ca_file}: {why}") from error
    context.set_alpn_protocols(["http/1.1"])
    if not upstream.tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def server_name(upstream: Upstream) -> str:
    """The name sent as SNI and looked for in the certificate: configured, or the URL's own host; "" is none."""
    if upstream.tls.server_name:
        return upstream.tls.server_name
    if upstream.address.host:
        return upstream.address.host
    host, _, port = upstream.authority.rpartition(":")
    return (host if port.isdigit() else upstream.authority).strip("[]")


def words(error: ssl.SSLError, name: str) -> str:
    """What a person can act on. OpenSSL's own reason at the end; nothing of the traffic."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {name} is not accepted: {error.verify_message.rstrip('.')}"
    reason = (error.reason or type(error).__name__).lower().replace("_", " ")
    return f"TLS handshake with {name} failed: {reason}"
