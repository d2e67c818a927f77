"""The traffic port's certificate: what a pair of files may be, and what happens when they change."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sidecar.app import App
from sidecar.certificates import CertificateError, ServerCertificate, pair_trouble, server_context, validity
from sidecar.configuration import load
from sidecar.settings import ServerTls
from tests.app_support import Client, answering, ask, before, on_uvloop, plain
from tests.departures import connected
from tests.upstream_support import run_on

NOW = datetime(2030, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Authority:
    """Issues pairs into a folder, each told from the others by its serial number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ca = trustme.CA()
        self.tls = ServerTls(str(folder / "tls.crt"), str(folder / "tls.key"))

    def issue(self, begins: datetime | None = None, ends: datetime | None = None) -> tuple[bytes, bytes]:
        """Certificate and key, PEM."""
        issued = self._ca.issue_cert("127.0.0.1", not_before=begins, not_after=ends)
        return issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes()

    def write(self, certificate: bytes, key: bytes) -> None:
        Path(self.tls.certificate).write_bytes(certificate)
        Path(self.tls.key).write_bytes(key)

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def shown(client: Client) -> str:
    """The serial number of the certificate that a client was shown."""
    certificate = client.writer.get_extra_info("peercert")
    return str(certificate["serialNumber"])


def serial_of(certificate: bytes) -> str:
    return f"{x509.load_pem_x509_certificate(certificate).serial_number:X}".zfill(2)


async def is_shown(app: App, authority: Authority, certificate: bytes) -> bool:
    async with connected(app, authority.client()) as client:
        assert (await client.ask(ask(stream=False))).status == 200
        return int(shown(client), 16) == int(serial_of(certificate), 16)


def look(app: App) -> None:
    app._sweep_idle(0.0)


@on_uvloop
async def test_new_connections_are_shown_the_new_certificate_and_running_ones_go_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first, second = authority.issue(), authority.issue()
    authority.write(*first)
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, tls=authority.tls) as app,
        connected(app, authority.client()) as running,
    ):
        assert (await running.ask(ask(stream=False))).status == 200
        authority.write(*second)
        assert await is_shown(app, authority, first[0])
        look(app)
        assert await is_shown(app, authority, second[0])
        assert (await running.ask(ask(stream=False))).status == 200


@on_uvloop
async def test_a_secret_volumes_swap_is_noticed(tmp_path: Path) -> None:
    """As the kubelet does it: files are links into ``..data``, itself a link, which is renamed over."""
    authority = Authority(tmp_path)
    pairs = [authority.issue() for _ in range(2)]
    for number, (certificate, key) in enumerate(pairs):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "tls.crt").write_bytes(certificate)
        (folder / "tls.key").write_bytes(key)
    (tmp_path / "..data").symlink_to("..0")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    async with answering(plain(b"{}")) as upstream, before(upstream.address, tls=authority.tls) as app:
        assert await is_shown(app, authority, pairs[0][0])
        (tmp_path / "..new").symlink_to("..1")
        os.rename(tmp_path / "..new", tmp_path / "..data")
        look(app)
        assert await is_shown(app, authority, pairs[1][0])


@on_uvloop
async def test_half_a_rotation_keeps_the_pair_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    first, second = authority.issue(), authority.issue()
    authority.write(*first)
    async with answering(plain(b"{}")) as upstream, before(upstream.address, tls=authority.tls) as app:
        with caplog.at_level(logging.INFO, "sidecar.tls"):
            authority.write(second[0], first[1])
            for _ in range(3):
                look(app)
            assert await is_shown(app, authority, first[0])
            os.unlink(authority.tls.key)
            for _ in range(3):
                look(app)
            assert await is_shown(app, authority, first[0])
            authority.write(*second)
            for _ in range(3):
                look(app)
            assert await is_shown(app, authority, second[0])
    told = [record.getMessage() for record in caplog.records if record.name == "sidecar.tls"]
    assert len(told) == 3
    assert "is not the key of" in told[0]
    assert "cannot be read" in told[1]
    assert "was read again" in told[2]
    assert all("PRIVATE" not in line and "BEGIN" not in line for line in told)


def test_a_renewed_certificate_that_ends_soon_is_told_of(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    authority.write(*authority.issue())
    certificate = ServerCertificate(authority.tls)
    authority.write(*authority.issue(ends=datetime.now(UTC) + DAY))
    certificate.look()
    assert "expires soon" in caplog.text


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_either_loop_takes_the_context(loop: str, authority: Authority) -> None:
    async def body() -> None:
        authority.write(*authority.issue())
        certificate = ServerCertificate(authority.tls)
        server = await asyncio.start_server(
            lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=certificate.context
        )
        address = server.sockets[0].getsockname()
        for _ in range(2):
            reader, writer = await asyncio.open_connection(*address, ssl=authority.client())
            assert await reader.read() == b""
            writer.close()
            authority.write(*authority.issue())
            certificate.look()
        server.close()

    run_on(loop, body())


# What is wrong with a pair


def trouble(authority: Authority, now: datetime = NOW) -> str:
    return pair_trouble(authority.tls, now)


def test_a_good_pair_is_no_trouble(authority: Authority) -> None:
    authority.write(*authority.issue(NOW - 30 * DAY, NOW + 60 * DAY))
    assert trouble(authority) == ""


@pytest.mark.parametrize(
    ("begins", "ends", "told"),
    [
        (-90 * DAY, -DAY, "expired on 2030-05-31 00:00 UTC"),
        (DAY, 90 * DAY, "is not valid before 2030-06-02 00:00 UTC"),
        (-80 * DAY, 10 * DAY, "expires soon, on 2030-06-11 00:00 UTC"),
        (-80 * DAY, 15 * DAY, ""),
        (-DAY / 2, DAY / 2, ""),
        (-DAY, DAY / 8, "expires soon"),
        (-DAY, 40 * 365 * DAY, ""),
    ],
)
def test_its_days(begins: timedelta, ends: timedelta, told: str, authority: Authority) -> None:
    authority.write(*authority.issue(NOW + begins, NOW + ends))
    assert told in trouble(authority)
    assert bool(told) == bool(trouble(authority))
    assert validity(Path(authority.tls.certificate).read_bytes()) == (NOW + begins, NOW + ends)


def test_a_pair_that_does_not_match(authority: Authority) -> None:
    authority.write(authority.issue()[0], authority.issue()[1])
    assert trouble(authority) == f"{authority.tls.key} is not the key of {authority.tls.certificate}"


def test_an_encrypted_key_is_called_by_its_name(authority: Authority) -> None:
    certificate, key = authority.issue()
    encrypted = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    authority.write(certificate, encrypted)
    assert trouble(authority).startswith(f"{authority.tls.key} is encrypted")


@pytest.mark.parametrize(("certificate", "key"), [(b"", b""), (b"nonsense", b"nonsense"), (b"\xff\x00", b"")])
def test_files_that_are_no_pair(certificate: bytes, key: bytes, authority: Authority) -> None:
    authority.write(certificate, key)
    assert "are no PEM certificate and its key" in trouble(authority)


def test_files_that_are_not_there(authority: Authority) -> None:
    with pytest.raises(CertificateError, match=r"tls\.crt cannot be read"):
        server_context(authority.tls)
    with pytest.raises(CertificateError, match=r"tls\.crt cannot be read"):
        ServerCertificate(authority.tls)


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 30, 31, 80])
def test_the_days_of_broken_certificates_are_nobodys(cut: int, authority: Authority) -> None:
    pem, _ = authority.issue()
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    with pytest.raises((ValueError, IndexError)):
        validity(ssl.DER_cert_to_PEM_cert(der[:cut]).encode())


def test_a_check_warns_of_a_pair(authority: Authority) -> None:
    def warnings() -> list[str]:
        text = f"tls: {{certificate: {authority.tls.certificate}, key: {authority.tls.key}}}\n"
        loaded = load(text + "upstreams: {up: {url: 'http://127.0.0.1:9'}}", source="c.yaml", environ={})
        assert loaded.settings is not None
        return [warning for warning in loaded.settings.warnings if warning.startswith("tls")]

    assert len(warnings()) == 2
    authority.write(authority.issue()[0], authority.issue()[1])
    assert "is not the key of" in warnings()[0]
    authority.write(*authority.issue(ends=datetime.now(UTC) + DAY))
    assert "expires soon" in warnings()[0]
    authority.write(*authority.issue(ends=datetime.now(UTC) + 300 * DAY))
    assert warnings() == []
