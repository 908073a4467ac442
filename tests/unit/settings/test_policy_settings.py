"""The settings that control how policies are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from l7proxy.errors import ConfigError
from l7proxy.gate.options import HttpOptions
from l7proxy.policy.lang import Options
from l7proxy.policy.rules import Reach
from l7proxy.setting_definitions import Settings
from l7proxy.settings.derived import http_options, policy_options
from l7proxy.settings.read import load
from l7proxy.wire.path import PathRules

ROWS: list[tuple[dict[str, Any], Options]] = [
    ({}, Options()),
    ({"enable_node_selector_labels": True}, Options(node_selectors=True)),
    ({"enable_icmp_rules": False}, Options(icmp=False)),
    ({"enable_extended_ip_protocols": True}, Options(extended_protocols=True)),
    ({"enable_non_default_deny_policies": False}, Options(non_default_deny=False)),
    ({"policy_cidr_match_mode": "nodes"}, Options(cidr_reach=Reach.NODES)),
    ({"policy_cidr_match_mode": "nodes,pods"}, Options(cidr_reach=Reach.ANYWHERE)),
]


@pytest.mark.parametrize(("values", "options"), ROWS, ids=[" ".join(row[0]) or "none" for row in ROWS])
def test_each_setting_is_one_option(values: dict[str, Any], options: Options) -> None:
    assert policy_options(msgspec.structs.replace(Settings(node="n1"), **values)) == options


def test_they_may_be_written_as_cilium_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("node: n1\nenable-node-selector-labels: true\nlabels: [k8s:app, '!team']\n")
    settings = load(file)
    assert policy_options(settings).node_selectors
    assert settings.labels == ("k8s:app", "!team")
    assert load(file, {}).dump() == settings.dump()


def test_wrong_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flag --policy-cidr-match-mode: must be one of .*, nodes,pods, not 'pods'"):
        load(None, {"node": "n1", "policy_cidr_match_mode": "pods"})
    with pytest.raises(
        ConfigError, match="flag --policy-enforcement-mode: must be one of default, always, not 'never'"
    ):
        load(None, {"node": "n1", "policy_enforcement_mode": "never"})
    file = tmp_path / "config.yaml"
    file.write_text("node: n1\nlabels: ['(']\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:2: labels: '\(' is not a valid regular expression"):
        load(file)


def test_the_defaults_are_cilium_s() -> None:
    assert policy_options(Settings(node="n1")) == Options()


def test_http_settings_are_the_gates_options() -> None:
    settings = Settings(
        node="n1", flow_headers=("X-ID",), flow_query=True, deny_header=True, connect=True, matrix_parameters="pass"
    )
    assert http_options(settings) == HttpOptions(
        PathRules(allow_matrix=True, allow_connect=True), frozenset({b"x-id"}), flow_query=True, deny_header=True
    )
    assert http_options(Settings(node="n1")) == HttpOptions()
