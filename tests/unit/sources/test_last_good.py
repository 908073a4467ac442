"""Last good versions of objects, and placeholders of policies that never had one."""

from __future__ import annotations

import pytest

from l7proxy.model.resources import Pod, PolicyDocument
from l7proxy.sources.files.manifest import parse
from l7proxy.sources.last_good import settle
from tests.support.manifests import POLICY, names, pod


def test_an_object_that_breaks_keeps_its_last_good_version() -> None:
    before, _ = settle(parse(f"{pod('a')}---\n{pod('b', '10.0.0.6')}".encode(), "f.yaml"), {})
    good, _ = settle(parse(f"{pod('a', 'nonsense')}---\n{pod('b', '10.0.0.7')}".encode(), "f.yaml"), before)
    addresses = {key.name: resource.addresses for key, resource in good.items() if isinstance(resource, Pod)}
    assert addresses == {"a": ("10.0.0.5",), "b": ("10.0.0.7",)}


def test_where_a_fault_has_no_name_nothing_of_the_file_disappears() -> None:
    before, _ = settle(parse(f"{pod('a')}---\n{pod('b', '10.0.0.6')}".encode(), "f.yaml"), {})
    good, _ = settle(parse(f"a: [\n---\n{pod('b', '10.0.0.7')}".encode(), "f.yaml"), before)
    assert names(good) == ["Pod default/a", "Pod default/b"]


def test_a_named_fault_lets_others_go() -> None:
    before, _ = settle(parse(f"{pod('a')}---\n{pod('b', '10.0.0.6')}".encode(), "f.yaml"), {})
    good, _ = settle(parse(pod("a", "x").encode(), "f.yaml"), before)
    assert names(good) == ["Pod default/a"]


@pytest.mark.parametrize(
    ("text", "name", "namespace"),
    [
        (POLICY.replace("fromEndpoints", "fromEndpoint"), "p", "shop"),
        (POLICY.replace("name: p, ", ""), "f.yaml:1", "shop"),
        (POLICY.replace("{name: p, namespace: shop}", "\n  namespace: shop\n  name: p") + "  - x: [", "p", "shop"),
        (POLICY + POLICY.partition("\n")[2], "p", "shop"),
    ],
    ids=["an unknown field", "no name", "no YAML", "keys twice"],
)
def test_a_policy_never_seen_whole_leaves_a_stand_in(text: str, name: str, namespace: str) -> None:
    good, placeholders = settle(parse(text.encode(), "f.yaml"), {})
    assert good == {}
    assert names(placeholders) == [f"CiliumNetworkPolicy {namespace}/{name}"]


def test_a_policy_that_breaks_stays_as_it_was() -> None:
    before, _ = settle(parse(POLICY.encode(), "f.yaml"), {})
    for broken in (POLICY.replace("fromEndpoints", "fromEndpoint"), POLICY + "  - x: ["):
        good, placeholders = settle(parse(broken.encode(), "f.yaml"), before)
        (resource,) = good.values()
        assert isinstance(resource, PolicyDocument)
        assert resource.document["spec"]["ingress"] == [{"fromEndpoints": [{}]}]
        assert good == before
        assert placeholders == {}
