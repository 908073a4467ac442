"""Flows in, policies out: who, which ports, which requests; and what must never become a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.learn import earlier, policies, traffic
from l7proxy.learn.observation import observe
from l7proxy.learn.policies import Learned
from l7proxy.policy import lang
from l7proxy.settings.read import load
from l7proxy.simulate import replay
from l7proxy.simulate.recorded import Judge
from l7proxy.sources.files.manifest import parse
from tests.support.seen_flows import made, pod, read, reserved

FRONT, BACK, DNS = pod("front"), pod("back"), pod("coredns", "kube-system", {"k8s-app": "kube-dns"})


def learned(*flows: dict[str, Any], before: Sequence[Learned] = (), **options: Any) -> dict[str, Learned]:
    """Policies by namespace/name."""
    old = earlier.read([one for text in before for one in parse(text.text.encode(), "old.yaml").resources])  # type: ignore[misc]
    seen = traffic.Traffic(traffic.Options(**options), allows=earlier.allows(old))
    seen.add_all(map(observe, read(*flows)))
    return {f"{one.namespace}/{one.name}": one for one in policies.learn(seen, old)}


def spec(found: Mapping[str, Learned], name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(found[name].text)
    assert document == found[name].document
    lang.read(document)
    return dict(document["spec"])


def http(method: str, path: str) -> dict[str, str]:
    return {"method": method, "path": path + r"(\?.*)?"}


def test_ingress_with_requests_and_egress_without() -> None:
    found = learned(
        made(FRONT, BACK, verdict="REDIRECTED"),
        made(FRONT, BACK, http="GET http://back/api/1"),
        made(FRONT, BACK, http="POST http://back/api"),
    )
    tcp80 = [{"port": "80", "protocol": "TCP"}]
    rules = {"http": [http("GET", "/api/[^/?]+"), http("POST", "/api")]}
    assert spec(found, "default/learned-back") == {
        "endpointSelector": {"matchLabels": {"app": "back"}},
        "ingress": [
            {"fromEndpoints": [{"matchLabels": {"app": "front"}}], "toPorts": [{"ports": tcp80, "rules": rules}]}
        ],
    }
    assert spec(found, "default/learned-front")["egress"] == [
        {"toEndpoints": [{"matchLabels": {"app": "back"}}], "toPorts": [{"ports": tcp80}]}
    ]
    assert "every request, since the destination judges them" in found["default/learned-front"].text


def test_refused_requests_are_comments() -> None:
    found = learned(
        made(FRONT, BACK, http="GET http://back/api"),
        made(FRONT, BACK, http="GET http://back/admin", verdict="DROPPED"),
    )
    assert "GET /admin" in found["default/learned-back"].text
    assert "/admin" not in str(spec(found, "default/learned-back"))


def test_a_port_of_which_every_request_was_refused_is_not_opened() -> None:
    found = learned(
        made(FRONT, BACK, verdict="REDIRECTED"), made(FRONT, BACK, http="GET http://back/x", verdict="DROPPED")
    )
    assert "default/learned-back" not in found


def test_refused_flows_count_if_asked_for() -> None:
    dropped = made(FRONT, BACK, 9000, verdict="DROPPED")
    assert learned(dropped) == {}
    assert "9000" in str(spec(learned(dropped, include_dropped=True), "default/learned-back"))


def test_an_egress_verdict_of_cilium_says_nothing_of_the_ingress() -> None:
    found = learned(made(FRONT, BACK, direction="EGRESS", emitter={"name": "Hubble"}))
    assert set(found) == {"default/learned-front"}


def test_replies_and_packets_that_were_not_judged_are_not_learned() -> None:
    trace = {"event_type": {"type": 4}, "is_reply": None}
    assert not learned(
        made(BACK, FRONT, 40000, is_reply=True, reply=True),
        made(FRONT, BACK, event_type={"type": 4, "sub_type": 5}, trace_observation_point="FROM_ENDPOINT"),
        made(FRONT, BACK, 53, protocol="UDP") | trace,
        made(FRONT, BACK, verdict="DROPPED", drop_reason_desc="INVALID_SOURCE_IP"),
        made(FRONT, BACK, verdict="ERROR"),
        made(FRONT, BACK, l7={"type": "REQUEST", "kafka": {"topic": "x"}}),
        include_dropped=True,
    )


def test_a_direction_seen_from_other_nodes_only_gets_no_rules() -> None:
    found = learned(made(pod("far", here=False), BACK))
    assert set(found) == {"default/learned-back"}


def test_labels_that_change_do_not_select() -> None:
    back = pod("x", labels={"app": "back", "pod-template-hash": "abc123", "version": "v2", "helm.sh/chart": "c-1"})
    other = pod("y", labels={"app": "back", "version": "v1"})
    found = learned(made(FRONT, back), made(FRONT, other))
    assert spec(found, "default/learned-back")["endpointSelector"] == {"matchLabels": {"app": "back"}}
    assert "whatever they have of: version (v1, v2)" in found["default/learned-back"].text


def test_labels_that_name_nothing_are_all_kept() -> None:
    found = learned(made(FRONT, pod("x", labels={"team": "blue", "zone": "a"})))
    assert spec(found, "default/learned-blue")["endpointSelector"]["matchLabels"] == {"team": "blue", "zone": "a"}


def test_a_pod_without_labels_is_never_selected_by_its_namespace() -> None:
    bare = pod("x", labels={"pod-template-hash": "abc"})
    found = learned(made(bare, BACK), made(FRONT, bare))
    assert set(found) == set()


def test_dns_entities_and_other_namespaces() -> None:
    found = learned(
        made(FRONT, DNS, 53, protocol="UDP", direction="EGRESS"),
        made(FRONT, reserved("world"), 443, direction="EGRESS", addresses=("10.0.0.1", "203.0.113.9")),
        made(FRONT, reserved("host", "kube-apiserver"), 6443, direction="EGRESS"),
        made(FRONT, reserved("remote-node"), 10250, direction="EGRESS"),
    )
    entries = spec(found, "default/learned-front")["egress"]
    kube = {"k8s-app": "kube-dns", "k8s:io.kubernetes.pod.namespace": "kube-system"}
    udp53 = [{"ports": [{"port": "53", "protocol": "UDP"}]}]
    assert {"toEndpoints": [{"matchLabels": kube}], "toPorts": udp53} in entries
    assert [one["toEntities"] for one in entries if "toEntities" in one] == [
        ["kube-apiserver"], ["remote-node"], ["world"],
    ]  # fmt: skip


def test_addresses_outside_as_prefixes() -> None:
    flows = [
        made(FRONT, reserved("world"), 443, direction="EGRESS", addresses=("10.0.0.1", each))
        for each in ("203.0.113.9", "2001:db8::1")
    ]
    entries = spec(learned(*flows, cidr=True), "default/learned-front")["egress"]
    assert sorted(one["toCIDR"][0] for one in entries) == ["2001:db8::1/128", "203.0.113.9/32"]


def test_icmp_by_type() -> None:
    entries = spec(learned(made(FRONT, BACK, 8, protocol="ICMPv4")), "default/learned-back")["ingress"]
    assert entries[0]["icmps"] == [{"fields": [{"family": "IPv4", "type": 8}]}]


def test_what_is_rare_is_a_comment() -> None:
    found = learned(made(FRONT, BACK), made(FRONT, BACK), made(FRONT, BACK, 81), min_count=2)
    assert "81" not in str(spec(found, "default/learned-back"))
    assert "seen less than --min-count: from default/app=front, 81/TCP: 1" in found["default/learned-back"].text


def test_hosts_if_asked_for() -> None:
    found = learned(made(FRONT, BACK, http="GET http://back.example:8080/x"), hosts=True)
    (rule,) = spec(found, "default/learned-back")["ingress"][0]["toPorts"][0]["rules"]["http"]
    assert rule["host"] == r"back\.example:8080"


def test_two_groups_of_one_name_get_two_policies() -> None:
    found = learned(
        made(FRONT, pod("a", labels={"app": "x", "tier": "one"})),
        made(FRONT, pod("b", labels={"app": "x", "tier": "two"})),
    )
    assert len([name for name in found if name.startswith("default/learned-x-")]) == 2


ATTACKS = [
    "/x\n  - method: GET", "/x' or '1", '/x"', "/.*", "/(a|b)", "/[^/]+", "/a\\Eb", "/%0a%0d", "/%2e%2e/admin", "/#x",
    "/a: b", "/{{x}}", "/\u2028", "/\udcff\udcfe", "/ü", "/$(id)", "/*", "/q?x=.*", "/…", "/" + "a" * 5000, "/a;b=c/d",
]  # fmt: skip


@pytest.mark.parametrize("path", ATTACKS)
def test_a_path_is_only_ever_a_path(path: str) -> None:
    found = learned(made(FRONT, BACK, http=f"GET http://back{path}"), made(FRONT, BACK, http="GET http://back/ok"))
    rules = spec(found, "default/learned-back")["ingress"][0]["toPorts"][0]["rules"]["http"]
    assert http("GET", "/ok") in rules
    assert len(rules) <= 2
    judge = Judge(changes(found), load(None, environment={}))
    for other in ("/secret", "/a", "/b", "/anything/else"):
        seen = observe(read(made(FRONT, BACK, http=f"GET http://back{other}", verdict="DROPPED"))[0])
        assert not isinstance(seen, str)
        assert not judge.judge(seen).allowed, other


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"app": "x\n  evil: y"}, "n"),
        ({"app": "*"}, "n"),
        ({"app: {}\nkind": "x"}, "n"),
        ({"app": 'x"'}, "n"),
        ({"app": "ok"}, "n\n---\nkind: Secret"),
        ({"app": "ok"}, "\x1b[31m"),
    ],
)
def test_labels_and_names_cannot_inject(labels: dict[str, str], name: str) -> None:
    attacker = pod(name, labels=labels)
    found = learned(made(attacker, BACK), made(FRONT, BACK))
    for one in found.values():
        assert yaml.safe_load(one.text) == one.document
        assert "evil" not in str(one.document)
        assert one.text.replace("\n", "").isprintable()
    assert {"matchLabels": {}} not in spec(found, "default/learned-back")["ingress"][0].get("fromEndpoints", [])


def refused(path: str, reason: str = "", method: str = "GET") -> dict[str, Any]:
    return made(
        FRONT, BACK, http=f"{method} http://back{path}", verdict="DROPPED", policy_log=[reason] if reason else []
    )


def passed(path: str, method: str = "GET") -> dict[str, Any]:
    return made(FRONT, BACK, http=f"{method} http://back{path}")


def rules(found: Mapping[str, Learned]) -> list[dict[str, Any]]:
    return list(spec(found, "default/learned-back")["ingress"][0]["toPorts"][0]["rules"]["http"])


def test_a_header_without_which_equal_requests_were_refused_is_required() -> None:
    missing = "no rule matched; nearest: policy default/p rule 2, method POST matched, header X-Token missing"
    found = learned(passed("/api/data", "POST"), refused("/api/data", missing, "POST"), passed("/api/x"))
    assert rules(found) == [http("GET", "/api/x"), {**http("POST", "/api/data"), "headers": ["X-Token"]}]


def test_what_passed_and_was_refused_for_a_reason_that_flows_do_not_show_is_not_allowed() -> None:
    some = [passed("/a"), refused("/a"), passed("/b")]
    found = learned(*some)
    assert rules(found) == [http("GET", "/b")]
    assert "GET /a: 1 passed, 1 were refused, and flows do not show why" in found["default/learned-back"].text
    assert http("GET", "/a") in rules(learned(*some, include_dropped=True))


def test_no_pattern_stands_for_a_path_that_was_refused() -> None:
    found = learned(passed("/users/1"), passed("/users/2"), passed("/items/1"), refused("/users/3", "no rule matched"))
    assert rules(found) == [http("GET", "/items/[^/?]+"), http("GET", "/users/1"), http("GET", "/users/2")]


def test_an_earlier_rule_that_asks_for_a_header_is_not_voided() -> None:
    old = learned(passed("/api/data"), refused("/api/data", "header X-Token missing"))
    new = learned(passed("/api/data"), passed("/api/other"), before=list(old.values()))
    entries = spec(new, "default/learned-back")["ingress"]
    paths_of = [rule for entry in entries for item in entry["toPorts"] for rule in item["rules"]["http"]]
    assert paths_of == [{**http("GET", "/api/data"), "headers": ["X-Token"]}, http("GET", "/api/other")]


# --- laws


def changes(found: Mapping[str, Learned]) -> list[Any]:
    from l7proxy.model.resources import Upsert

    resources = [one for each in found.values() for one in parse(each.text.encode(), "learned.yaml").resources]
    return [Upsert(one) for one in resources]


ends = st.sampled_from(
    [
        FRONT,
        BACK,
        DNS,
        pod("front", "other"),
        pod("a", labels={"app": "back", "tier": "x"}),
        pod("b", labels={"app": "back"}),
    ]
)
outside = st.sampled_from([reserved("world"), reserved("host"), reserved("kube-apiserver"), reserved("remote-node")])
paths = st.lists(
    st.text(alphabet="abz019.-_~%+(*[\\;:@ü\n#", min_size=1, max_size=4) | st.sampled_from(["api", "v1", "%41"]),
    max_size=3,
).map(lambda some: "/" + "/".join(some))


@st.composite
def flows(draw: st.DrawFn) -> dict[str, Any]:
    source, destination = draw(ends | outside), draw(ends)
    if draw(st.booleans()) and "namespace" in source:
        source, destination = source, draw(outside)
    direction = draw(st.sampled_from(["INGRESS", "EGRESS"]))
    if "namespace" not in source:
        direction = "INGRESS"
    if "namespace" not in destination:
        direction = "EGRESS"
    verdict = draw(st.sampled_from(["FORWARDED", "FORWARDED", "AUDIT", "DROPPED", "REDIRECTED"]))
    kind = draw(st.sampled_from(["L4", "HTTP", "HTTP", "ICMP"]))
    addresses = (draw(st.sampled_from(["10.0.0.1", "203.0.113.1"])), draw(st.sampled_from(["10.0.0.2", "2001:db8::7"])))
    more: dict[str, Any] = {"direction": direction, "addresses": addresses}
    if kind == "HTTP" and verdict != "REDIRECTED":
        request = f"{draw(st.sampled_from(['GET', 'POST']))} http://h{draw(paths)}"
        return made(source, destination, draw(st.sampled_from([80, 8080])), http=request, verdict=verdict, **more)
    if kind == "ICMP":
        verdict = "FORWARDED" if verdict == "REDIRECTED" else verdict
        return made(source, destination, 8, protocol="ICMPv4", verdict=verdict, **more)
    return made(source, destination, draw(st.sampled_from([80, 443])), verdict=verdict, **more)


def lost(found: Mapping[str, Learned], some: Sequence[dict[str, Any]], *, queries: bool = False) -> list[replay.Change]:
    """The flows that passed and would not under these policies, without those that cannot be learned."""
    seen = replay.Flows()
    seen.add_all(map(observe, read(*some)))
    judge = Judge(changes(found), load(None, environment={}), queries_recorded=queries)
    result = replay.replay(seen, judge)
    for one in result.unjudged:
        assert one.why == replay.NOT_INSPECTED or one.why.startswith("a worker would refuse"), one
    return [one for one in result.changes if one.would == "denied"]


def learnable(one: dict[str, Any]) -> bool:
    """Requests that no worker would judge, and connections whose requests were all refused, are comments."""
    from l7proxy.learn.paths import readable

    if "l7" not in one:
        return one["verdict"] not in ("REDIRECTED", "DROPPED")
    try:
        readable(one["l7"]["http"]["url"].removeprefix("http://h"))
    except ValueError:
        return False
    return bool(one["verdict"] != "DROPPED")


@given(st.lists(flows().filter(learnable), min_size=1, max_size=12), st.booleans(), st.booleans())
def test_a_learned_policy_allows_what_it_was_learned_from(
    some: list[dict[str, Any]], cidr: bool, any_query: bool
) -> None:
    found = learned(*some, cidr=cidr, any_query=any_query, max_values=2)
    assert lost(found, some, queries=not any_query) == []


@given(st.lists(flows().filter(learnable), min_size=1, max_size=6), st.lists(flows().filter(learnable), max_size=6))
def test_learning_again_only_adds(before: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    old = learned(*before, max_values=2)
    new = learned(*more, before=list(old.values()), max_values=2)
    for name, one in old.items():
        for direction in ("ingress", "egress"):
            kept = one.document["spec"].get(direction, [])
            assert new[name].document["spec"].get(direction, [])[: len(kept)] == kept
    assert lost(new, before) == []


@st.composite
def exchanges(draw: st.DrawFn) -> dict[str, Any]:
    """Connections and requests of one pod to another, refused or not."""
    verdict = draw(st.sampled_from(["FORWARDED", "DROPPED"]))
    reason = draw(st.sampled_from(["", "no rule matched", "header X-Token missing"]))
    path = draw(st.sampled_from(["/users/1", "/users/2", "/users/3", "/users/me", "/a", "/b", "/c", "/d", "/a/1/b"]))
    if draw(st.integers(0, 5)) == 0:
        return made(FRONT, BACK, verdict=draw(st.sampled_from(["FORWARDED", "REDIRECTED"])))
    return passed(path) if verdict == "FORWARDED" else refused(path, reason)


@given(st.lists(exchanges(), min_size=1, max_size=14))
def test_what_was_refused_stays_refused(some: list[dict[str, Any]]) -> None:
    """Where a policy is written at all. A header that is required cannot be judged, so it is not allowed either."""
    found = learned(*some, max_values=2)
    if "default/learned-back" not in found:
        return
    seen = replay.Flows()
    seen.add_all(map(observe, read(*some)))
    result = replay.replay(seen, Judge(changes(found), load(None, environment={})))
    assert [one for one in result.changes if one.would == "allowed"] == []


@given(st.lists(flows(), min_size=1, max_size=12))
def test_it_is_deterministic_and_independent_of_order(some: list[dict[str, Any]]) -> None:
    one, other = learned(*some), learned(*reversed(some))
    assert {name: each.text for name, each in one.items()} == {name: each.text for name, each in other.items()}


@given(st.lists(flows().filter(learnable), min_size=1, max_size=6), st.sampled_from(["/secret", "/api/../secret"]))
def test_a_request_like_none_that_was_seen_stays_refused(some: list[dict[str, Any]], path: str) -> None:
    """Where requests were inspected: elsewhere a port is open as a whole."""
    found = learned(*some, made(FRONT, BACK, 8888, http="GET http://h/known"))
    refused = made(FRONT, BACK, 8888, http=f"GET http://h{path}", verdict="DROPPED")
    seen = replay.Flows()
    seen.add_all(map(observe, read(refused)))
    assert replay.replay(seen, Judge(changes(found), load(None, environment={}))).changes == ()


def test_learning_the_same_again_adds_nothing() -> None:
    some = [made(FRONT, BACK, http="GET http://back/api/1"), made(FRONT, BACK, 443)]
    old = learned(*some)
    new = learned(*some, before=list(old.values()))
    assert [one.added for one in new.values()] == [0, 0]
    assert {name: one.document for name, one in new.items()} == {name: one.document for name, one in old.items()}


def test_earlier_policies_that_are_not_understood_are_kept() -> None:
    text = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: mine, namespace: default}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: In, values: [back]}]}
  ingressDeny: [{fromEntities: [world]}]
"""
    old = Learned(yaml.safe_load(text), text, 0)
    found = learned(made(FRONT, BACK), before=[old])
    assert found["default/mine"].document == old.document
    assert "default/learned-back" in found


def test_earlier_http_rules_are_not_voided_by_connections_that_were_not_inspected() -> None:
    old = learned(made(FRONT, BACK, http="GET http://back/api"))
    new = learned(made(FRONT, BACK), before=list(old.values()))
    assert new["default/learned-back"].added == 0
    assert "earlier HTTP rules stay" in new["default/learned-back"].text
