"""A certificate for 127.0.0.1 that is its own CA, made afresh for one run.

Owns the call of ``openssl``. Must not know who uses it.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from benchmarks.machine import BenchmarkError, find_program
from benchmarks.proxies import Certificate

if TYPE_CHECKING:
    from pathlib import Path

# A configuration of our own: distributions differ in what theirs adds, and Python 3.13 checks RFC 5280 strictly.
_REQUEST: Final = """[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = llm-sidecar benchmark
[extensions]
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
subjectAltName = IP:127.0.0.1
"""


def make_certificate(folder: Path) -> Certificate:
    """Write certificate and key into ``folder``. Raises BenchmarkError without a working ``openssl``."""
    openssl = find_program("openssl")
    if openssl is None:
        raise BenchmarkError("openssl is not installed: no certificate for TLS")
    request, made = folder / "request.cnf", Certificate(folder / "certificate.pem", folder / "key.pem")
    request.write_text(_REQUEST)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(made.key))
    done = subprocess.run(
        [openssl, "req", "-x509", *key, "-out", str(made.certificate), "-days", "2", "-config", str(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"openssl made no certificate: {done.stderr.strip()[-200:]}")
    return made
