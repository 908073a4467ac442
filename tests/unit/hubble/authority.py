"""Certificates for tests: an authority, a server's certificate in files, clients with certificates of any authority."""

from __future__ import annotations

import datetime
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from l7proxy.setting_definitions import Settings

NAME = "n1.default.hubble-grpc.cilium.io"
ALL_NAMES = "*.default.hubble-grpc.cilium.io"
"""As the chart's certificates have it: Relay asks for the name of each node, and for that of the peer service."""
NAMES = (x509.DNSName(NAME), x509.DNSName(ALL_NAMES), x509.IPAddress(ip_address("127.0.0.1")))
PEM = serialization.Encoding.PEM


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """Writes `tls.crt`, `tls.key` and `ca.crt` into the directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._signed(_name("authority"), self._key, ca=True)
        (directory / "ca.crt").write_bytes(self.certificate)
        self.issue()

    def _signed(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(_name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(NAMES), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(PEM)

    def pair(self) -> tuple[bytes, bytes]:
        """A new (key, certificate)."""
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return private, self._signed(_name(NAME), key, ca=False)

    def issue(self) -> None:
        """Write a new certificate of the server."""
        key, certificate = self.pair()
        (self._directory / "tls.key").write_bytes(key)
        (self._directory / "tls.crt").write_bytes(certificate)

    def settings(self, **more: Any) -> Settings:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        return Settings(
            node="n1",
            hubble_listen_address=f"127.0.0.1:{port}",
            hubble_tls_cert_file=str(self._directory / "tls.crt"),
            hubble_tls_key_file=str(self._directory / "tls.key"),
            hubble_tls_client_ca_files=(str(self._directory / "ca.crt"),),
            **more,
        )

    def channel(self, settings: Settings, signer: Authority | None) -> grpc.aio.Channel:
        """To the server of these settings, with a certificate of the signer."""
        key, certificate = signer.pair() if signer else (None, None)
        credentials = grpc.ssl_channel_credentials(self.certificate, key, certificate)
        name = (("grpc.ssl_target_name_override", NAME),)
        return grpc.aio.secure_channel(settings.hubble_listen_address, credentials, name)

    def served(self, settings: Settings) -> str:
        """The certificate that the server shows, as PEM."""
        host, _, port = settings.hubble_listen_address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)))
