"""Tunnels of pods: refused to any destination, unless a policy allows exactly that port or protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from l7proxy.agent.dataplane.render import Tables
from l7proxy.errors import ConfigError
from l7proxy.model.tunnels import TUNNEL_PORTS, TUNNEL_PROTOCOLS
from l7proxy.model.verdict import Direction, DropReason, Verdict
from l7proxy.policy import decide
from l7proxy.policy.encapsulation import NO_ENCAPSULATION, no_encapsulation
from l7proxy.policy.lang.options import Options
from l7proxy.policy.tables import EndpointPolicy
from l7proxy.settings.read import load

WHERE = ("a", "b", "n1", "n2", "outside")
EXTENDED = Options(extended_protocols=True)


def town(bench: Any, *policies: Any, **options: Any) -> Any:
    return bench.town(*policies, everywhere=no_encapsulation(), **options)


def to(bench: Any, *policies: str, port: str = "8472/UDP", **options: Any) -> str:
    """The verdict of a packet from the server to this port, for each destination of WHERE."""
    return str(town(bench, *policies, **options).egress(*WHERE, port=port))


def tables(found: Any) -> EndpointPolicy:
    (number,) = (one.id for one in found.view.endpoints if (one.namespace, one.name) == ("default", "server"))
    policy: EndpointPolicy = found.policies[number]
    return policy


@pytest.mark.parametrize("number", TUNNEL_PORTS)
def test_without_a_policy_every_tunnels_port_is_refused_and_says_so(bench: Any, number: int) -> None:
    port = f"{number}/UDP"
    assert to(bench, port=port) == "deny deny deny deny deny"
    decision = town(bench).port(Direction.EGRESS, "192.168.0.1", port).l4
    assert (decision.ref, decision.drop_reason) == (NO_ENCAPSULATION, DropReason.POLICY_DENY)
    assert decision.reason == f"{port} is a tunnel: pods may use it only if a policy allows exactly this UDP port " + (
        "or IP protocol"
    )


@pytest.mark.parametrize("protocol", TUNNEL_PROTOCOLS)
def test_without_a_policy_every_tunnels_protocol_is_refused_and_says_so(bench: Any, protocol: int) -> None:
    decision = decide.port(tables(town(bench)).egress, 1, protocol, 0).l4
    assert (decision.verdict, decision.ref) == (Verdict.DROPPED, NO_ENCAPSULATION)
    assert decision.reason.startswith(f"protocol {protocol} is a tunnel")


@pytest.mark.parametrize("port", ["80/TCP", "8472/TCP", "53/UDP", "8471/UDP", "8473/UDP", "8472/SCTP", "8/ICMP"])
def test_all_else_of_a_pod_without_policy_is_as_if_there_were_no_table(bench: Any, port: str) -> None:
    found = town(bench)
    assert found.port(Direction.EGRESS, "203.0.113.7", port) is decide.UNGOVERNED
    assert tables(found).ingress is None
    egress = tables(found).egress
    assert egress is not None and not egress.governed


def test_the_kernel_is_told_that_no_policy_governs(bench: Any) -> None:
    (_, egress), *others = Tables().of(town(bench).policies).values()
    assert egress is not None and not egress.governed
    assert {(entry.protocol, entry.first, entry.last) for entry in egress.entries} == {
        *((17, port, port) for port in TUNNEL_PORTS),
        *((protocol, 0, 65535) for protocol in TUNNEL_PROTOCOLS),
    }
    assert all(other == (None, egress) for other in others)


ALL_PORTS = "egress: [{toEntities: [all]}]"
EVERY_UDP = "egress: [{toPorts: [{ports: [{port: '0', protocol: UDP}]}]}]"
A_RANGE = "egress: [{toPorts: [{ports: [{port: '8000', endPort: 9000, protocol: UDP}]}]}]"
NAMED = "egress: [{toPorts: [{ports: [{port: '8472', protocol: UDP}]}]}]"
NAMED_OF_ANY = "egress: [{toPorts: [{ports: [{port: '8472'}]}]}]"
TO_NODES = "egress: [{toEntities: [host, remote-node], toPorts: [{ports: [{port: '8472', protocol: UDP}]}]}]"
DENIED = "egressDeny: [{toEntities: [host], toPorts: [{ports: [{port: '8472', protocol: UDP}]}]}]"


@pytest.mark.parametrize("spec", [ALL_PORTS, EVERY_UDP, A_RANGE])
def test_a_policy_that_allows_more_than_that_port_does_not_mean_it(bench: Any, spec: str) -> None:
    assert to(bench, spec) == "deny deny deny deny deny"
    assert to(bench, spec, port="8500/UDP") == "allow allow allow allow allow"


@pytest.mark.parametrize("spec", [NAMED, NAMED_OF_ANY])
def test_a_policy_that_names_the_port_lets_it_through(bench: Any, spec: str) -> None:
    assert to(bench, spec) == "allow allow allow allow allow"
    assert to(bench, spec, port="4789/UDP") == "deny deny deny deny deny"


def test_it_lets_through_to_those_whom_it_means(bench: Any) -> None:
    assert to(bench, TO_NODES) == "no rule no rule allow allow no rule".replace("no rule", "deny")
    assert to(bench, TO_NODES, ALL_PORTS) == "deny deny allow allow deny"
    assert to(bench, NAMED, DENIED) == "allow allow deny allow allow", "who may be exempt is judged as before"


def test_a_protocol_by_name(bench: Any) -> None:
    gre = "egress: [{toPorts: [{ports: [{protocol: GRE}]}]}]"
    assert to(bench, gre, port="0/GRE", options=EXTENDED) == "allow allow allow allow allow"
    assert to(bench, ALL_PORTS, port="0/GRE") == "deny deny deny deny deny"


@pytest.mark.parametrize("spec", ["", ALL_PORTS])
def test_audit_does_not_soften_it(bench: Any, spec: str) -> None:
    assert to(bench, *[spec] * bool(spec), audit_all=True) == "deny deny deny deny deny"


def test_a_contested_address_without_policy_stays_ungoverned(bench: Any) -> None:
    twin = """
    - {apiVersion: v1, kind: Pod, metadata: {name: twin, namespace: default}, spec: {nodeName: n1},
       status: {podIP: 10.1.0.2}}
    """
    found = town(bench, more=twin)
    (torn,) = (one for one in found.view.endpoints if one.name == "conflicting address 10.1.0.2")
    assert decide.port(found.policies[torn.id].egress, 2, 6, 80) is decide.UNGOVERNED


def test_nothing_to_refuse_is_no_rule() -> None:
    assert no_encapsulation((), ()) == ()
    (one,) = no_encapsulation((8472, 8472), ())
    assert [(match.first, match.last) for match in one.ports or ()] == [(8472, 8472)]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("tunnel_ports: [0]", "tunnel_ports: must be a list of numbers from 1 to 65535, not [0]"),
        ("tunnel-protocols: [6]", "tunnel-protocols: 6 is not an IP protocol without ports or ICMP types"),
        ("tunnel_protocols: [256]", "tunnel_protocols: must be a list of numbers from 0 to 255, not [256]"),
    ],
)
def test_settings_that_name_no_tunnel(tmp_path: Path, text: str, wrong: str) -> None:
    file = tmp_path / "l7proxy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert wrong in str(caught.value)
