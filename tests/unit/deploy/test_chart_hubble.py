"""Hubble in the chart, as helm renders it: certificates, listeners, what is refused. Skipped without helm ($HELM)."""

from __future__ import annotations

import base64
import subprocess
from typing import Any, Final

import pytest
import yaml
from cryptography import x509

from deploy.helm import generate

ALL: Final = "hubble.enabled=true,hubble.relay.enabled=true"
ISSUER: Final = "hubble.certificates.from=cert-manager,hubble.certificates.issuerRef.name=hubble"


@pytest.fixture(scope="module")
def helm() -> str:
    if not (program := generate.helm()):
        pytest.skip("helm is not in PATH, nor in $HELM")
    return program


def template(helm: str, *values: str) -> subprocess.CompletedProcess[str]:
    command = [helm, "template", "l7proxy", str(generate.CHART), "--namespace=kube-system"]
    return subprocess.run([*command, *(f"--set={one}" for one in values)], capture_output=True, text=True, check=False)


def rendered(helm: str, *values: str) -> dict[tuple[str, str], dict[str, Any]]:
    done = template(helm, *values)
    assert done.returncode == 0, done.stderr
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout) if one}


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def test_certificates_of_helm_have_the_names_that_relay_verifies(helm: str) -> None:
    objects = rendered(helm, ALL, "hubble.ui.enabled=true,settings.cluster=east.one")
    authority = x509.load_pem_x509_certificate(base64.b64decode(objects["Secret", "hubble-ca"]["data"]["ca.crt"]))
    found = {}
    for (kind, name), one in objects.items():
        if kind == "Secret" and name != "hubble-ca":
            certificate = x509.load_pem_x509_certificate(base64.b64decode(one["data"]["tls.crt"]))
            certificate.verify_directly_issued_by(authority)
            assert "ca.key" not in one["data"]
            found[name] = names(certificate)
    assert found == {
        "hubble-server-certs": ["*.east-one.hubble-grpc.cilium.io"],
        "hubble-relay-client-certs": ["*.hubble-relay.cilium.io"],
        "hubble-relay-server-certs": ["*.hubble-relay.cilium.io"],
        "hubble-ui-client-certs": ["*.hubble-ui.cilium.io"],
    }


def test_no_pod_has_the_key_of_the_authority(helm: str) -> None:
    objects = rendered(helm, ALL, "hubble.ui.enabled=true")
    mounted = [
        volume["secret"]["secretName"]
        for (kind, _), one in objects.items()
        if kind in ("DaemonSet", "Deployment")
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    ]
    assert "hubble-server-certs" in mounted
    assert "hubble-ca" not in mounted


def test_cert_manager_makes_the_same_names(helm: str) -> None:
    objects = rendered(helm, ALL, ISSUER, "hubble.relay.tls.enabled=true")
    made = {
        one["spec"]["secretName"]: one["spec"]["dnsNames"]
        for (kind, _), one in objects.items()
        if kind == "Certificate"
    }
    assert made == {
        "hubble-server-certs": ["*.default.hubble-grpc.cilium.io"],
        "hubble-relay-client-certs": ["*.hubble-relay.cilium.io"],
        "hubble-relay-server-certs": ["*.hubble-relay.cilium.io"],
    }
    assert not [name for kind, name in objects if kind == "Secret"]


def test_secrets_that_are_there_are_used_by_their_names(helm: str) -> None:
    objects = rendered(helm, ALL, "hubble.certificates.from=secrets,hubble.certificates.secrets.server=mine")
    assert not [name for kind, name in objects if kind in ("Secret", "Certificate")]
    volumes = objects["DaemonSet", "l7proxy"]["spec"]["template"]["spec"]["volumes"]
    (tls,) = (one["secret"] for one in volumes if one["name"] == "hubble-tls")
    assert tls["secretName"] == "mine"
    assert tls["optional"] is True  # policies must not wait for it


@pytest.mark.parametrize(
    ("values", "address", "port"),
    [
        ((ALL,), "127.0.0.1:4245", 80),
        ((ALL, "hubble.relay.tls.enabled=true"), ":4245", 443),
        ((ALL, "hubble.ui.enabled=true"), ":4245", 443),
    ],
)
def test_relay_listens_on_the_network_with_mutual_tls_only(
    helm: str, values: tuple[str, ...], address: str, port: int
) -> None:
    objects = rendered(helm, *values)
    config = yaml.safe_load(objects["ConfigMap", "hubble-relay"]["data"]["config.yaml"])
    assert config["listen-address"] == address
    assert config.get("disable-server-tls", False) is (port == 80)
    assert bool(config.get("tls-relay-client-ca-files")) is (port == 443)
    assert [one["port"] for one in objects["Service", "hubble-relay"]["spec"]["ports"]] == [port]


def test_by_default_nothing_of_it_is_there(helm: str) -> None:
    assert not [name for _, name in rendered(helm) if "hubble" in name]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (("hubble.relay.enabled=true",), "hubble.relay.enabled: Relay reads from the agents"),
        (("hubble.enabled=true,hubble.ui.enabled=true",), "hubble.ui.enabled: the UI reads from Relay"),
        ((ALL, "hubble.certificates.from=cert-manager"), "hubble.certificates.issuerRef: cert-manager needs"),
        ((ALL, "hubble.certificates.from=other"), "from"),
        (("settings.hubble-listen-address=:4244",), "hubble-listen-address"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_named(helm: str, values: tuple[str, ...], fault: str) -> None:
    done = template(helm, *values)
    assert done.returncode != 0
    assert fault in done.stderr
