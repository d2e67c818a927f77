"""What AWS does with a signed request: computes the signature anew from the bytes that came.

By the published algorithm and once more by botocore; both must find what the request bears.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import quote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.app_support import Received

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key_id>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, "
    r"SignedHeaders=(?P<signed>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)


def signed_by(received: Received, secrets: dict[str, str]) -> tuple[str, str, str]:
    """Key id, region and service of a request whose signature is right; ``secrets`` are the secret keys by their ids.

    Raises AssertionError for any other request.
    """
    authorizations = [value for name, value in received.headers if name.lower() == "authorization"]
    assert len(authorizations) == 1
    found = _AUTHORIZATION.fullmatch(authorizations[0])
    assert found is not None
    names = found["signed"].split(";")
    assert names == sorted(names)
    sent = {name.lower() for name, _ in received.headers}
    assert {"host", "x-amz-date", *(name for name in sent if name.startswith("x-amz-"))} <= set(names) <= sent
    secret = secrets[found["key_id"]]
    assert _by_the_book(received, names, found, secret) == _by_botocore(received, names, found, secret)
    assert _by_the_book(received, names, found, secret) == found["signature"]
    return found["key_id"], found["region"], found["service"]


def _by_the_book(received: Received, names: list[str], found: re.Match[str], secret: str) -> str:
    path, _, query = received.target.partition("?")
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in query.split("&") if part)]
    values = {name: [v for n, v in received.headers if n.lower() == name] for name in names}
    canonical = [
        received.method,
        quote(path, safe="/-_.~"),
        "&".join(f"{name}={value}" for name, value in sorted(pairs)),
        *(f"{name}:{','.join(' '.join(value.split()) for value in values[name])}" for name in names),
        "",
        ";".join(names),
        hashlib.sha256(received.body).hexdigest(),
    ]
    scope = f"{found['date']}/{found['region']}/{found['service']}/aws4_request"
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{received.header('X-Amz-Date')}\n{scope}\n{digest}"
    return hmac.digest(key, text.encode(), "sha256").hex()


def _by_botocore(received: Received, names: list[str], found: re.Match[str], secret: str) -> str:
    request = AWSRequest(received.method, f"https://host{received.target}", data=received.body)
    for name, value in received.headers:
        if name.lower() in names:
            request.headers[name] = value
    request.context["timestamp"] = received.header("X-Amz-Date")
    auth = SigV4Auth(Credentials(found["key_id"], secret), found["service"], found["region"])
    return str(auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request))
