"""Makes what is derived from other files: `python -m deploy.helm.generate` writes

  deploy/helm/l7proxy/files/crds/*.yaml      from deploy/helm/crds.py
  deploy/helm/l7proxy/values.schema.json     from the definitions of the settings, and the table below
  deploy/helm/l7proxy/files/live-settings.json    the settings that change without new pods
  deploy/crds.yaml                           the CRDs in one file
  deploy/install.yaml                        the rendered chart, for clusters without helm (needs helm)

tests/unit/deploy/test_chart.py compares them with their sources, install.yaml without helm by the digest in its head.
`python -m tests.pages` writes all but install.yaml.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from deploy.helm import crds
from l7proxy.setting_definitions import DEFINITIONS
from tests.pages import schema as settings_schema

HERE: Final = Path(__file__).resolve().parent
CHART: Final = HERE / "l7proxy"
SCHEMA: Final = CHART / "values.schema.json"
LIVE: Final = CHART / "files" / "live-settings.json"
INSTALL: Final = HERE.parent / "install.yaml"
CRDS: Final = HERE.parent / "crds.yaml"
NAMESPACE: Final = "kube-system"
OF_THE_CHART: Final = frozenset(
    (
        "node",
        "namespace",
        "source",
        "kubeconfig",
        "kube-context",
        "run-dir",
        "state-dir",
        "cni-results",
        "health-address",
        "metrics-address",
        "hubble-listen-address",
        "hubble-tls-cert-file",
        "hubble-tls-key-file",
        "hubble-tls-client-ca-files",
    )
)
"""Settings that the chart sets itself: a value of them would contradict its volumes and probes."""

TEXT: Final = {"type": "string"}
YES_NO: Final = {"type": "boolean"}
NUMBER: Final = {"type": "integer"}
PORT: Final = {"type": "integer", "minimum": 1, "maximum": 65535}
TEXTS: Final = {"type": "array", "items": TEXT}
FREE: Final = {"type": "object"}
"""Parts of Kubernetes' own API: the API server checks them."""
FREE_LIST: Final = {"type": "array", "items": FREE}
PATH: Final = {"type": "string", "pattern": "^/"}


def fixed(**properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def settings() -> dict[str, Any]:
    """The settings of l7proxy that are values of the chart."""
    known = settings_schema()["properties"]
    return fixed(**{key: value for key, value in known.items() if key not in OF_THE_CHART})


def image() -> dict[str, Any]:
    digest = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
    return {
        "repository": TEXT,
        "tag": TEXT,
        "digest": digest,
        "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    }


def hubble() -> dict[str, Any]:
    placed = {"nodeSelector": FREE, "tolerations": FREE_LIST, "affinity": FREE}
    container = fixed(image=fixed(**image()), resources=FREE)
    name = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
    return fixed(
        enabled=YES_NO,
        port=PORT,
        certificates=fixed(
            days={"type": "integer", "minimum": 2, "maximum": 1825},
            issuerRef=FREE,
            secrets=fixed(server=name, relayClient=name, relayServer=name, uiClient=name),
            **{"from": {"enum": ["helm", "cert-manager", "secrets"]}},
        ),
        relay=fixed(
            enabled=YES_NO,
            tls=fixed(enabled=YES_NO),
            image=fixed(**image()),
            replicas={"type": "integer", "minimum": 0},
            resources=FREE,
            **placed,
        ),
        ui=fixed(enabled=YES_NO, frontend=container, backend=container, **placed),
    )


def values_schema() -> dict[str, Any]:
    capabilities = {"type": "array", "items": {"enum": ["NET_ADMIN", "NET_RAW"]}}
    pods = {"resources": FREE, "updateStrategy": FREE, "capabilities": capabilities}
    top = fixed(
        image=fixed(**image(), pullSecrets=FREE_LIST),
        settings=settings(),
        secretsNamespaces=TEXTS,
        crds=fixed(install=YES_NO),
        apiServer=fixed(host=TEXT, port=PORT),
        agent=fixed(healthPort=PORT, extraVolumes=FREE_LIST, extraVolumeMounts=FREE_LIST, **pods),
        metrics=fixed(
            enabled=YES_NO,
            address=TEXT,
            port=PORT,
            podMonitor=fixed(enabled=YES_NO, labels=FREE, interval=TEXT),
        ),
        hubble=hubble(),
        workers=fixed(**pods),
        paths=fixed(run=PATH, state=PATH, cniResults=PATH),
        nodeSelector=FREE,
        tolerations=FREE_LIST,
        affinity=FREE,
        priorityClassName=TEXT,
        podLabels=FREE,
        podAnnotations=FREE,
        seLinuxOptions=FREE,
        rbac=fixed(create=YES_NO),
        serviceAccount=fixed(annotations=FREE),
        cleanup=fixed(enabled=YES_NO, timeout={"type": "integer", "minimum": 1}),
        **{"global": FREE},
    )
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the l7proxy chart", **top}


def schema_text() -> str:
    return json.dumps(values_schema(), indent=2) + "\n"


def live_settings() -> list[str]:
    """Settings whose change needs no new pods."""
    return [one.key for one in DEFINITIONS.values() if one.about.live]


def live_text() -> str:
    return json.dumps(live_settings(), indent=2) + "\n"


def crd_files() -> dict[Path, str]:
    return {
        CHART / "files" / "crds" / f"{one['spec']['names']['plural']}.yaml": crds.text(one)
        for one in crds.definitions()
    }


def crds_text() -> str:
    return "---\n".join(crd_files().values())


def chart_digest() -> str:
    """Digest of the files of the chart that its rendering depends on."""
    found = hashlib.sha256()
    templates = (path for path in (CHART / "templates").rglob("*") if path.is_file())
    for path in sorted((CHART / "Chart.yaml", CHART / "values.yaml", LIVE, *templates)):
        content = path.read_bytes()
        found.update(f"{path.relative_to(CHART)} {len(content)}\n".encode() + content)
    return found.hexdigest()


def helm() -> str:
    """The helm program: $HELM, or in PATH; "" when there is none."""
    return os.environ.get("HELM") or shutil.which("helm") or ""


def install_text(program: str) -> str:
    """The chart as `helm template` renders it: without CRDs and hooks."""
    command = [program, "template", "l7proxy", str(CHART), f"--namespace={NAMESPACE}", "--no-hooks"]
    made = subprocess.run([*command, "--set=crds.install=false"], check=True, capture_output=True, text=True).stdout
    head = (
        "# l7proxy without helm: kubectl apply --server-side -f crds.yaml -f install.yaml\n"
        "# (crds.yaml only where Cilium's CRDs are not there yet). Before deleting it, see docs/operating.md, Remove.\n"
        f"# Made by `python -m deploy.helm.generate` from the chart {chart_digest()}\n"
    )
    return head + made


def write_what_needs_no_helm() -> None:
    for path, content in crd_files().items():
        path.write_text(content)
    SCHEMA.write_text(schema_text())
    LIVE.write_text(live_text())
    CRDS.write_text(crds_text())


def main() -> None:
    write_what_needs_no_helm()
    if program := helm():
        INSTALL.write_text(install_text(program))
    else:
        sys.exit("error: helm is not in PATH (or $HELM): deploy/install.yaml was not written")


if __name__ == "__main__":
    main()
