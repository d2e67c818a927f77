"""The traffic port's certificate: loaded, checked, and loaded again when its files change.

Owns what a TLS client is shown and what is wrong with a pair of files. Must not know who listens.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.settings import ServerTls

logger = logging.getLogger("sidecar.tls")

SOON: Final = timedelta(days=14)
"""A certificate that ends within this, or within the last quarter of its life where that is less, ends soon."""

_PEM_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL | re.ASCII
)
_MAX_FILE_BYTES: Final = 1024 * 1024
_UTC_TIME: Final = 0x17
_EXPLICIT_0: Final = 0xA0

_Signature = tuple[tuple[int, int, int], ...]


class CertificateError(ValueError):
    """A pair of files that cannot be used. The message names the files, never what is in them."""


class ServerCertificate:
    """The pair of files that ``settings`` names, as clients are shown it.

    ``context`` is what a listening server is given once and for all; every handshake uses the pair that is current
    when it begins, and running connections keep theirs. Raises CertificateError at construction.
    """

    def __init__(self, settings: ServerTls) -> None:
        self._settings = settings
        self._signature: _Signature = ()
        self._trouble = ""
        self.context = RenewedContext()
        self._load(self._looked_at())

    def look(self) -> None:
        """Read the files again if they changed; at most once a second is enough. While a rotation is half done, the
        last good pair stays in use."""
        try:
            signature = self._looked_at()
            if signature == self._signature and not self._trouble:
                return
            self._load(signature)
        except CertificateError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.error("%s; the certificate before it stays in use", error)  # noqa: TRY400 - its text says all
            return
        self._trouble = ""
        logger.info("%s was read again: new connections are shown it", self._settings.certificate)
        if (trouble := validity_trouble(self._settings, datetime.now(UTC))) != "":
            logger.warning("%s", trouble)

    def _looked_at(self) -> _Signature:
        found = []
        for path in (self._settings.certificate, self._settings.key):
            try:
                status = os.stat(path)
            except OSError as error:
                raise CertificateError(f"{path} cannot be read: {error.strerror}") from None
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(found)

    def _load(self, signature: _Signature) -> None:
        self.context.current = server_context(self._settings)
        self._signature = signature


class RenewedContext(ssl.SSLContext):
    """Whatever a server asks of it, ``current`` answers; so another one takes effect whole, and at once."""

    current: ssl.SSLContext

    def __new__(cls) -> RenewedContext:
        """A context that has no certificate of its own."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """What the loops begin a handshake with."""
        return self.current.wrap_bio(*args, **options)


def server_context(settings: ServerTls) -> ssl.SSLContext:
    """A context that shows the certificate of ``settings``. Raises CertificateError for files that cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    certificate, key = settings.certificate, settings.key
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            raise CertificateError(
                f"{path} cannot be read: {'it is not there' if not os.path.exists(path) else 'denied'}"
            )
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _EncryptedKeyError:
        raise CertificateError(
            f"{key} is encrypted, and there is nobody to ask for its password: store it without"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(f"{key} is not the key of {certificate}") from None
        raise CertificateError(f"{certificate} and {key} are no PEM certificate and its key") from None
    except OSError as error:
        raise CertificateError(f"{certificate} and {key} cannot be read: {error.strerror}") from None
    return context


class _EncryptedKeyError(Exception):
    """OpenSSL wants a password, which else it would ask the terminal for."""


def _no_password() -> NoReturn:
    raise _EncryptedKeyError


def pair_trouble(settings: ServerTls, now: datetime) -> str:
    """What a check says of the pair, "" where all is well."""
    try:
        server_context(settings)
    except CertificateError as error:
        return str(error)
    return validity_trouble(settings, now)


def validity_trouble(settings: ServerTls, now: datetime) -> str:
    """What is odd about the days the certificate is good for, "" where nothing is."""
    path = settings.certificate
    try:
        with open(path, "rb") as file:
            begins, ends = validity(file.read(_MAX_FILE_BYTES))
    except (OSError, ValueError, IndexError):
        return ""
    if now >= ends:
        return f"{path} expired on {ends:%Y-%m-%d %H:%M} UTC"
    if now < begins:
        return f"{path} is not valid before {begins:%Y-%m-%d %H:%M} UTC"
    if ends - now < min(SOON, (ends - begins) / 4):
        return f"{path} expires soon, on {ends:%Y-%m-%d %H:%M} UTC"
    return ""


def validity(pem: bytes) -> tuple[datetime, datetime]:
    """From when and until when the first certificate of a PEM file is good. Raises ValueError or IndexError for what is
    none. Python's own ssl tells that of a peer's certificate only."""
    found = _PEM_CERTIFICATE.search(pem)
    if found is None:
        raise ValueError("no certificate")
    der = ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
    ((_, certificate),) = _elements(der)
    (_, signed), *_ = _elements(certificate)
    fields = [each for each in _elements(signed) if each[0] != _EXPLICIT_0]  # without its version
    begins, ends = _elements(fields[3][1])  # behind serial number, signature algorithm and issuer
    return _time(*begins), _time(*ends)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each DER element, one behind the other."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size], "big")
            at += size
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, text: bytes) -> datetime:
    """UTCTime until 2049, GeneralizedTime from then on (RFC 5280 section 4.1.2.5)."""
    told = text.decode("ascii")
    if tag == _UTC_TIME:
        told = ("20" if int(told[:2]) < 50 else "19") + told
    return datetime.strptime(told, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
