"""The ``credentials`` of an upstream, and every place a secret is read from.

Owns that no secret stands in the file. Must not know what else an upstream is.
"""

from __future__ import annotations

import re
from typing import Final

from sidecar.configuration.fields import NOT_IN_THE_FILE, Section, header_name
from sidecar.configuration.yaml_tree import Scalar
from sidecar.headers import HOP_BY_HOP, SIDECAR_SETS
from sidecar.settings import AwsKeySource, AwsSigning, Credentials, CredentialsPolicy, SecretSource

_OURS: Final = HOP_BY_HOP | SIDECAR_SETS
_PREFIX: Final = re.compile(r"(?:[A-Za-z-]{1,12}[ =]?)?")
_REGION: Final = re.compile(r"[a-z]{2,4}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}")
_SERVICE: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PROFILE: Final = re.compile(r"[^\[\]\x00-\x1f\x7f]{1,128}")
_AWS_HOST: Final = re.compile(r".+\.(?:amazonaws\.(?:com|eu|com\.cn)|api\.aws)")
_HOST_SERVICES: Final = frozenset({"bedrock-mantle", "aws-external-anthropic"})
"""Labels of AWS hosts that are also the name signed by; Bedrock's other hosts are signed for as ``bedrock``."""
_AWS_KEY_ID: Final = re.compile(r"A[A-Z]{3}[A-Z0-9]{12,}")


def read_credentials(section: Section, host: str) -> Credentials | None:
    """What an upstream's section says under ``credentials``; None where it leaves the policy open. ``host`` is the
    upstream's own."""
    node = section.node("credentials")
    if node is None:
        return None
    if isinstance(node, Scalar):
        if node.text not in ("client", "none"):
            section.complain("credentials", f"must be client, none or a section; {NOT_IN_THE_FILE}")
        return Credentials(policy="client" if node.text == "client" else "none")
    below = section.section("credentials")
    if "aws" in below:
        return Credentials("replace", aws=_read_aws(below, host))
    header = below.checked("header", _credential_header, "Authorization")
    when = below.choice("when", ("always", "if_missing"), "always")
    policy: CredentialsPolicy = "if_missing" if when == "if_missing" else "replace"
    default_prefix = "Bearer " if header.lower() == "authorization" else ""
    prefix = below.checked("prefix", _credential_prefix, default_prefix)
    return Credentials(policy, header, prefix, read_secret_source(below))


def read_secret_source(section: Section) -> SecretSource | None:
    """Exactly one of ``file`` and ``env``; None, with a problem noted, otherwise."""
    if ("file" in section) == ("env" in section):
        message = "needs exactly one of file and env"
        section.problems.add(section.line, section.path, message)
        return None
    source = SecretSource(
        file=section.checked("file", _absolute_file, ""), env=section.checked("env", _variable_name, "")
    )
    return source if source.file or source.env else None


def _read_aws(beside: Section, host: str) -> AwsSigning | None:
    """How requests are signed for AWS; None, with a problem noted, where that cannot be told."""
    for key in ("header", "prefix", "when", "file", "env"):
        if key in beside:
            beside.complain(key, "means nothing beside aws: a signed request carries no secret as it is")
    section = beside.section("aws")
    region = section.checked("region", _aws_region, "") or _region_of(host)
    if not region and "region" not in section:
        section.complain("region", "is missing, and the host of the url names none")
    keys = _read_aws_keys(section)
    service = section.checked("service", _aws_service, _service_of(host))
    return AwsSigning(region, keys, service) if region and keys is not None else None


def _read_aws_keys(section: Section) -> AwsKeySource | None:
    if ("file" in section) == ("env" in section):
        section.problems.add(section.line, section.path, "needs exactly one of file and env")
        return None
    if "file" in section:
        file = section.checked("file", _absolute_file, "")
        return AwsKeySource(file, section.checked("profile", _aws_profile, "default")) if file else None
    if "profile" in section:
        section.complain("profile", "means nothing without file")
    below = section.section("env")
    for key in ("access_key_id", "secret_access_key"):
        if key not in below:
            below.complain(key, "is missing")
    return AwsKeySource(
        access_key_id=below.checked("access_key_id", _aws_variable_name, ""),
        secret_access_key=below.checked("secret_access_key", _aws_variable_name, ""),
        session_token=below.checked("session_token", _aws_variable_name, ""),
    )


def _region_of(host: str) -> str:
    """The region that an AWS host name holds; "" for none."""
    return next((label for label in _aws_labels(host) if _REGION.fullmatch(label)), "")


def _service_of(host: str) -> str:
    """What the vendors' own packages sign by for an upstream at ``host``."""
    return next((label for label in _aws_labels(host) if label in _HOST_SERVICES), "bedrock")


def _aws_labels(host: str) -> list[str]:
    return host.split(".") if _AWS_HOST.fullmatch(host) else []


def _credential_header(text: str) -> str:
    if header_name(text).lower().encode() in _OURS | {b"cookie"}:
        raise ValueError("is a header that cannot carry a credential")
    return text


def _credential_prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ValueError('must be a word such as "Bearer "; the secret itself comes from file or env')
    return text


def _absolute_file(text: str) -> str:
    if not text.startswith("/") or not text.isprintable():
        raise ValueError("must be the absolute path of the file that holds the secret")
    return text


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,127}", text):
        raise ValueError("must be the name of an environment variable, in capitals, not its value")
    return text


def _aws_variable_name(text: str) -> str:
    if _AWS_KEY_ID.fullmatch(text):
        raise ValueError("looks like a key id: name the environment variable that holds it")
    return _variable_name(text)


def _aws_region(text: str) -> str:
    if not _REGION.fullmatch(text):
        raise ValueError("must be an AWS region, such as eu-central-1")
    return text


def _aws_service(text: str) -> str:
    if not _SERVICE.fullmatch(text):
        raise ValueError("must be the name AWS signs by, such as bedrock")
    return text


def _aws_profile(text: str) -> str:
    if not _PROFILE.fullmatch(text):
        raise ValueError("must be the name of a profile of the file")
    return text
