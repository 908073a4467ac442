"""One list of rules: the same in every proxy's language and in the paths that the load generators request."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench import big_world, paced
from bench.proxies import Place, envoy, haproxy, nginx
from bench.rules import BULK, policy, rules
from l7proxy.sources.files.manifest import parse

PLACE = Place(Path("/nowhere"), 15001, 0x02000000, "10.0.0.2", (80, 81))


def test_every_path_of_the_paced_load_is_allowed_by_a_rule() -> None:
    chosen = rules(10)
    for head in paced.heads("server", 10):
        path = head.split()[1].decode()
        matching = [rule for rule in chosen if re.fullmatch(rule.path, path.partition("?")[0])]
        assert [rule.method for rule in matching] == ["GET"]
        assert b"X-Token: " in head


def test_each_language_has_every_rule() -> None:
    chosen = rules(20)
    said = {
        "haproxy": "\n".join(haproxy.config(PLACE, chosen)),
        "nginx": "\n".join(nginx.config(PLACE, chosen)),
        "envoy": envoy.config(PLACE, chosen),
        "cilium": policy(chosen, http_ports=(80,), open_ports=(90,)),
    }
    for name, text in said.items():
        assert [rule.path for rule in chosen if rule.path not in text] == [], name


def test_nginx_has_one_location_a_path_and_all_methods_of_it() -> None:
    text = "\n".join(nginx.config(PLACE, rules(2)))
    assert text.count("location ~ ^/bulk/.*$") == 1
    assert "^(GET|POST)$" in text


def test_our_policy_is_read_without_a_fault() -> None:
    manifest = parse(policy(rules(1000), http_ports=(80, 81), open_ports=(90,)).encode(), "policy.yaml")
    assert not manifest.faults
    assert len(manifest.resources) == 1


def test_the_big_world_is_read_without_a_fault(tmp_path: Path) -> None:
    size = big_world.Size(pods=300, policies=100, local=20)
    big_world.write(size, tmp_path, "node-1")
    found = [parse(path.read_bytes(), path.name) for path in sorted(tmp_path.glob("*.yaml"))]
    assert not [fault for manifest in found for fault in manifest.faults]
    kinds = [resource.key.kind for manifest in found for resource in manifest.resources]
    assert kinds.count("Pod") == 300
    assert kinds.count("CiliumNetworkPolicy") == 100


def test_the_bulk_paths_are_in_every_list() -> None:
    assert rules(3)[3:] == BULK
    assert json.loads(policy(rules(0), http_ports=(80,), open_ports=(90,)))["spec"]["ingress"]
