"""The chart, by its committed rendering (deploy/install.yaml): derived files, rights, privileges, settings."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.helm import generate
from deploy.image import requirements
from l7proxy.setting_definitions import DEFINITIONS, WORKERS, WorkerSettings
from l7proxy.settings.read import load
from l7proxy.sources.kubernetes import kinds

READ: Final = frozenset(("list", "watch"))


def _group(version: str) -> str:
    return version.rpartition("/")[0]


ASKED: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    **{(_group(version), kind.plural): READ for kind in kinds.KINDS for version in kind.versions},
    **{(_group(place.version), place.plural): READ for place in (kinds.DEFINITIONS, kinds.API_SERVICES)},
    ("cilium.io", "ciliumnetworkpolicies/status"): frozenset(("patch",)),
    ("cilium.io", "ciliumclusterwidenetworkpolicies/status"): frozenset(("patch",)),
    ("events.k8s.io", "events"): frozenset(("create",)),
}
"""What the agent asks of the API server for the whole cluster: (API group, resource) → verbs."""
ASKED_AT_HOME: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("coordination.k8s.io", "leases"): READ | {"create", "update", "patch"},
}
"""What it asks in its own namespace only."""


@pytest.fixture(scope="module")
def rendered() -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, name) → object."""
    objects = [one for one in yaml.safe_load_all(generate.INSTALL.read_text()) if one is not None]
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found


def rules(role: Mapping[str, Any]) -> dict[tuple[str, str], frozenset[str]]:
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                assert not found[group, resource] & set(rule["verbs"]), f"{group}/{resource}: twice"
                found[group, resource] |= set(rule["verbs"])
    return {what: frozenset(verbs) for what, verbs in found.items()}


def pods(rendered: Mapping[tuple[str, str], dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for (kind, name), one in rendered.items():
        if kind == "DaemonSet":
            yield name, one["spec"]["template"]["spec"]


def test_the_derived_files_are_those_of_their_sources() -> None:
    for path, content in generate.crd_files().items():
        assert path.read_text() == content, path.name
    assert set(generate.crd_files()) == set((generate.CHART / "files" / "crds").iterdir())
    assert generate.LIVE.read_text() == generate.live_text()
    assert generate.SCHEMA.read_text() == generate.schema_text()
    assert generate.CRDS.read_text() == generate.crds_text()


def test_install_yaml_was_rendered_from_this_chart() -> None:
    text = generate.INSTALL.read_text()
    assert f"from the chart {generate.chart_digest()}\n" in text, "run python -m deploy.helm.generate (needs helm)"
    if program := generate.helm():
        assert text == generate.install_text(program)


def test_the_agent_has_exactly_the_rights_that_it_uses(rendered: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert rules(rendered["ClusterRole", "l7proxy"]) == ASKED
    assert rules(rendered["Role", "l7proxy"]) == ASKED_AT_HOME
    bound = {
        (kind, subject["name"])
        for (kind, _), one in rendered.items()
        if kind.endswith("Binding")
        for subject in one["subjects"]
    }
    assert bound == {("ClusterRoleBinding", "l7proxy"), ("RoleBinding", "l7proxy")}


def test_workers_have_no_way_to_the_api_server(rendered: dict[tuple[str, str], dict[str, Any]]) -> None:
    pod = dict(pods(rendered))["l7proxy-workers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "l7proxy-workers"
    assert rendered["ServiceAccount", "l7proxy-workers"]["automountServiceAccountToken"] is False


def test_no_pod_has_more_privilege_than_it_needs(rendered: dict[tuple[str, str], dict[str, Any]]) -> None:
    added = {}
    for name, pod in pods(rendered):
        assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
        assert not {"hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            context = container["securityContext"]
            assert "privileged" not in context
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            added[name] = context["capabilities"]["add"]
    assert added == {"l7proxy": ["NET_ADMIN", "NET_RAW"], "l7proxy-workers": ["NET_ADMIN"]}


def test_which_directories_of_the_node_a_pod_sees(rendered: dict[tuple[str, str], dict[str, Any]]) -> None:
    seen = {
        name: {volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
        for name, pod in pods(rendered)
    }
    agent = {"/run/l7proxy", "/var/lib/l7proxy", "/var/lib/cni/results", "/run/xtables.lock", "/proc/sys/net"}
    assert seen == {"l7proxy": agent, "l7proxy-workers": {"/run/l7proxy"}}
    mounts = {one["name"]: one for one in dict(pods(rendered))["l7proxy"]["containers"][0]["volumeMounts"]}
    assert mounts["cni-results"]["readOnly"] is True


def test_new_workers_can_start_beside_the_old_ones(rendered: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The API server forbids a surge of pods with host ports, and the scheduler places no two of them on a node."""
    daemonset = rendered["DaemonSet", "l7proxy-workers"]
    assert daemonset["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 0
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    assert "ports" not in container
    drain = WorkerSettings().drain
    assert daemonset["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + 10


def test_agent_and_workers_start_with_the_settings_of_the_config_map(
    rendered: dict[tuple[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(rendered["ConfigMap", "l7proxy"]["data"]["config.yaml"])
    environment = {"NODE_NAME": "n1"}
    assert load(file, {"node": "n1"}, environment=environment).flow_log == "stdout"
    assert load(file, {"node": "n1"}, environment=environment, used_by=WORKERS).drain == 30


def test_the_values_have_every_setting_but_those_of_the_chart() -> None:
    known = set(generate.values_schema()["properties"]["settings"]["properties"])
    assert known == {one.key for one in DEFINITIONS.values()} - generate.OF_THE_CHART


def test_workers_are_replaced_when_one_of_their_settings_changes() -> None:
    text = (generate.CHART / "templates" / "workers.yaml").read_text()
    (picked,) = re.findall(r"pick \.Values\.settings ([^}]*)", text)
    used = {one.key for one in DEFINITIONS.values() if WORKERS in one.used_by}
    assert set(re.findall(r'"([a-z-]+)"', picked)) == used - generate.OF_THE_CHART


def test_values_yaml_has_every_value_and_no_other() -> None:
    values = yaml.safe_load((generate.CHART / "values.yaml").read_text())
    schema = generate.values_schema()["properties"]
    assert set(values) == set(schema) - {"global"}
    for name, part in schema.items():
        if "properties" in part and name != "settings":
            assert set(values[name]) == set(part["properties"]), name


def test_the_image_has_every_dependency_pinned_by_digest() -> None:
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", requirements.RUNTIME.read_text(), re.MULTILINE))
    for wanted in requirements.dependencies():
        name = re.split(r"[<>=!~ \[]", wanted)[0].lower()
        assert name in pinned, f"{name}: run python -m deploy.image.requirements"
    for listed in (requirements.RUNTIME, requirements.BUILD):
        pins = re.split(r"\n(?! )", listed.read_text().removeprefix(requirements.HEAD).strip())
        assert all("--hash=sha256:" in pin for pin in pins)
