"""Keys and certificates of a cluster: one authority, and a client certificate for each component.

The names are those that Kubernetes gives rights to: the common name is the user, the organization the group
(https://kubernetes.io/docs/setup/best-practices/certificates/). Keys are ECDSA P-256, all files mode 0600.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.cluster.plan import API_PORT, API_SERVICE_ADDRESS, CLUSTER_DOMAIN, Cluster

VALID_FOR: Final = datetime.timedelta(days=365)
_SKEW: Final = datetime.timedelta(hours=1)
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate is for. With `names` it serves TLS, else it is a client's."""

    file: str
    user: str
    group: str = ""
    names: tuple[str, ...] = ()
    """DNS names and IP addresses."""


def subjects(cluster: Cluster) -> tuple[Subject, ...]:
    """Every certificate of the cluster but the authority's."""
    return (
        Subject("apiserver", "kube-apiserver", names=api_names(cluster)),
        Subject("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
        Subject("admin", "kubernetes-admin", "system:masters"),
        Subject("kube-controller-manager", "system:kube-controller-manager"),
        Subject("kube-scheduler", "system:kube-scheduler"),
        Subject("kube-proxy", "system:kube-proxy"),
        *(Subject(node.name, f"system:node:{node.name}", "system:nodes") for node in cluster.nodes),
        *(
            Subject(f"{node.name}-serving", f"system:node:{node.name}", "system:nodes", (node.name, *node.addresses))
            for node in cluster.nodes
        ),
    )


def api_names(cluster: Cluster) -> tuple[str, ...]:
    service = "kubernetes.default.svc"
    return (
        "kubernetes",
        "kubernetes.default",
        service,
        f"{service}.{CLUSTER_DOMAIN}",
        "localhost",
        LOOPBACK,
        API_SERVICE_ADDRESS,
        *cluster.control.addresses,
    )


def create(cluster: Cluster) -> None:
    """Write all keys and certificates into the cluster's `pki` directory, and the components' kubeconfigs."""
    directory = cluster.pki
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_key = _key(directory / "ca.key")
    authority = _authority(authority_key)
    _write(directory / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
    service_accounts = _key(directory / "sa.key")
    _write(directory / "sa.pub", _public(service_accounts))
    for subject in subjects(cluster):
        key = _key(directory / f"{subject.file}.key")
        certificate = issue(subject, key.public_key(), authority, authority_key)
        _write(directory / f"{subject.file}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    server = f"https://{cluster.control.addresses[0]}:{API_PORT}"
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy", *(node.name for node in cluster.nodes)):
        write_kubeconfig(directory / f"{name}.kubeconfig", cluster, name, server)


def issue(
    subject: Subject,
    key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    usage = ExtendedKeyUsageOID.SERVER_AUTH if subject.names else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _certificate(_name(subject), authority.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if subject.names:
        names = x509.SubjectAlternativeName([_general_name(name) for name in subject.names])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "l7proxy cluster CA")])
    return (
        _certificate(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + VALID_FOR)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(subject: Subject) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject.user)]
    if subject.group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.group))
    return x509.Name(attributes)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    # The traditional form (RFC 5915): Kubernetes reads no PKCS #8 for the key of service accounts.
    form = serialization.PrivateFormat.TraditionalOpenSSL
    _write(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return key


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _write(path: Path, content: bytes) -> None:
    """Readable by root only, from its first moment on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def write_kubeconfig(path: Path, cluster: Cluster, user: str, server: str) -> None:
    """A kubeconfig that holds all it needs, mode 0600."""
    text = yaml.safe_dump(kubeconfig(cluster.name, server, cluster.pki, user), sort_keys=False)
    _write(path, text.encode())


def kubeconfig(name: str, server: str, pki: Path, user: str) -> dict[str, Any]:
    def content(file: str) -> str:
        return base64.b64encode((pki / file).read_bytes()).decode()

    credentials = {"client-certificate-data": content(f"{user}.crt"), "client-key-data": content(f"{user}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": content("ca.crt")}}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    }


def names_of(certificate: x509.Certificate) -> Sequence[str]:
    """The DNS names and addresses that a certificate is valid for."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = extension.get_values_for_type(x509.DNSName)
    return [*dns, *(str(address) for address in extension.get_values_for_type(x509.IPAddress))]
