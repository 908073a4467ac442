"""The certificates of the TLS listener: read at start, and again when a file has changed.

Files are compared by content, at most once per second and only when a client connects: Kubernetes replaces mounted
Secrets by renaming directories, and cert-manager renews them at any time. Files that do not fit together (a renewal
under way) are not used: the last good ones serve on.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from l7proxy.errors import ConfigError

log = logging.getLogger(__name__)

CHECK_EVERY: Final = 1.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files. Clients must show a certificate of one of `client_cas`."""

    certificate: Path
    key: Path
    client_cas: Sequence[Path]


@dataclass(frozen=True, slots=True)
class _Loaded:
    certificate: bytes
    key: bytes
    client_cas: bytes


class CertificateError(ConfigError):
    """A file is missing, or is not what it should be."""


class Certificates:
    """CertificateError when the files cannot be used at start. Called by gRPC's threads."""

    def __init__(self, files: CertificateFiles, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._loaded = _load(files)
        self._checked = clock()
        self._fault = ""

    def credentials(self) -> grpc.ServerCredentials:
        first = _configuration(self._loaded)
        return grpc.dynamic_ssl_server_credentials(first, self.renewed, require_client_authentication=True)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What new connections use from now on; None: no change."""
        now = self._clock()
        if now - self._checked < CHECK_EVERY:
            return None
        self._checked = now
        try:
            found = _load(self._files)
        except CertificateError as error:
            self._report(str(error))
            return None
        self._report("")
        if found == self._loaded:
            return None
        self._loaded = found
        log.info("hubble: certificates renewed")
        return _configuration(found)

    def _report(self, fault: str) -> None:
        """Each fault once."""
        if fault and fault != self._fault:
            log.warning("%s; the last good certificates stay in use", fault)
        self._fault = fault


def _load(files: CertificateFiles) -> _Loaded:
    loaded = _Loaded(_read(files.certificate), _read(files.key), b"\n".join(map(_read, files.client_cas)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CertificateError(
            f"hubble-tls-cert-file {files.certificate}, hubble-tls-key-file {files.key}: "
            f"not a PEM certificate and its unencrypted key: {error}"
        ) from error
    try:
        context.load_verify_locations(cadata=loaded.client_cas.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        places = ", ".join(map(str, files.client_cas))
        raise CertificateError(f"hubble-tls-client-ca-files {places}: not PEM certificates: {error}") from error
    return loaded


def _no_password() -> str:
    """An encrypted key would be asked for on the terminal."""
    raise ValueError("the key is encrypted")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"hubble: cannot read {path}: {error.strerror}") from error


def _configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.certificate)], loaded.client_cas)
