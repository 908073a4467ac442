"""Certificates of a cluster, as OpenSSL and Kubernetes read them."""

from __future__ import annotations

import base64
import datetime
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.cluster import pki, plan
from deploy.cluster.plan import Cluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(plan, "CLUSTERS", tmp_path)
    made = Cluster("kube")
    pki.create(made)
    return made


def certificate(cluster: Cluster, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((cluster.pki / f"{name}.crt").read_bytes())


def test_all_files_are_for_root_only(cluster: Cluster) -> None:
    assert stat.S_IMODE(cluster.pki.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cluster.pki.iterdir()} == {0o600}


def test_every_certificate_is_signed_by_the_authority_and_valid_now(cluster: Cluster) -> None:
    authority = certificate(cluster, "ca")
    now = datetime.datetime.now(datetime.UTC)
    for subject in pki.subjects(cluster):
        made = certificate(cluster, subject.file)
        made.verify_directly_issued_by(authority)
        assert made.not_valid_before_utc < now < made.not_valid_after_utc


def test_a_certificate_is_either_a_servers_or_a_clients(cluster: Cluster) -> None:
    for subject in pki.subjects(cluster):
        usage = certificate(cluster, subject.file).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH if subject.names else ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_api_server_is_known_by_every_address_that_somebody_uses(cluster: Cluster) -> None:
    names = set(pki.names_of(certificate(cluster, "apiserver")))
    assert names == {
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",  # through the gateway, from the host
        "10.96.0.1",  # in pods
        "172.30.0.1",
        "fd00:172:30::1",
    }


def test_a_node_is_known_by_its_addresses_and_has_a_nodes_rights_only(cluster: Cluster) -> None:
    assert set(pki.names_of(certificate(cluster, "node-2-serving"))) == {"node-2", "172.30.0.12", "fd00:172:30::12"}
    name = certificate(cluster, "node-2").subject
    assert name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:node-2"
    assert name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"


def test_keys_fit_their_certificates(cluster: Cluster) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for subject in pki.subjects(cluster):
        key = load_pem_private_key((cluster.pki / f"{subject.file}.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.public_key() == certificate(cluster, subject.file).public_key()


def test_a_kubeconfig_holds_all_it_needs(cluster: Cluster) -> None:
    pki.write_kubeconfig(cluster.kubeconfig, cluster, "admin", "https://127.0.0.1:1")
    assert stat.S_IMODE(cluster.kubeconfig.stat().st_mode) == 0o600
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    embedded = base64.b64decode(document["users"][0]["user"]["client-certificate-data"])
    assert x509.load_pem_x509_certificate(embedded) == certificate(cluster, "admin")
