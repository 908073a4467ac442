"""The stock `hubble` in tests, and what each of its filters means, said once more by a predicate on the flow's JSON."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeAlias

JsonFlow: TypeAlias = dict[str, Any]
Matches: TypeAlias = Callable[[JsonFlow], bool]
L7, DROP, VERDICT_OF_POLICY = 129, 1, 5
"""Event types."""


@dataclass(frozen=True, slots=True)
class HubbleCli:
    """`connection`: the flags that say which server. `within`: a command that runs it elsewhere."""

    program: Path
    connection: Sequence[str]
    within: Sequence[str] = ()
    environment: Mapping[str, str] | None = None

    def argv(self, *arguments: str) -> list[str]:
        return [*self.within, str(self.program), *arguments, *self.connection]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, timeout=90, env=self.environment, check=False
        )
        assert not check or done.returncode == 0, f"hubble {' '.join(arguments)}: {done.stderr}"
        return done

    def flows(self, *arguments: str) -> list[JsonFlow]:
        """Without losses and without Relay's news of nodes."""
        return flows_in(self.run("observe", *arguments, "-o", "json").stdout.splitlines())


def flows_in(lines: Iterable[str]) -> list[JsonFlow]:
    return [line["flow"] for line in map(json.loads, lines) if "flow" in line]


def ids(flows: Iterable[JsonFlow]) -> set[str]:
    return {flow["uuid"] for flow in flows}


def endpoint(flow: JsonFlow, side: str) -> JsonFlow:
    found: JsonFlow = flow.get(side, {})
    return found


def pod(flow: JsonFlow, side: str) -> str:
    end = endpoint(flow, side)
    return f"{end.get('namespace', '')}/{end.get('pod_name', '')}"


def http(flow: JsonFlow) -> JsonFlow:
    found: JsonFlow = flow.get("l7", {}).get("http", {})
    return found


def path(flow: JsonFlow) -> str:
    return re.sub(r"^http://[^/]*", "", http(flow).get("url", ""))


def port(flow: JsonFlow, side: str) -> int:
    (l4,) = flow["l4"].values()
    found: int = l4.get(f"{side}_port", 0)
    return found


def address(flow: JsonFlow, side: str) -> str:
    found: str = flow["IP"][side]
    return found


def service(flow: JsonFlow, side: str) -> str:
    found = flow.get(f"{side}_service", {})
    return f"{found.get('namespace', '')}/{found.get('name', '')}"


def trace_id(flow: JsonFlow) -> str:
    found: str = flow.get("trace_context", {}).get("parent", {}).get("trace_id", "")
    return found


def workloads(flow: JsonFlow, side: str) -> list[str]:
    return [one["name"] for one in endpoint(flow, side).get("workloads", ())]


def both(of_side: Callable[[JsonFlow, str], bool]) -> dict[str, Matches]:
    """Of a filter with its forms --from-X, --to-X and --X."""
    return {
        "from-": lambda flow: of_side(flow, "source"),
        "to-": lambda flow: of_side(flow, "destination"),
        "": lambda flow: of_side(flow, "source") or of_side(flow, "destination"),
    }


def table(client: str, server: str, flows: Sequence[JsonFlow]) -> list[tuple[list[str], Matches]]:
    """Flags and which flows they select. `client`, `server`: two pods of the namespace default that have flows."""
    some = next(one for one in flows if pod(one, "source") == f"default/{client}" and http(one))
    identity = str(endpoint(some, "source")["identity"])
    label = next(one for one in endpoint(some, "source")["labels"] if not one.startswith("k8s:io."))
    source, target = address(some, "source"), address(some, "destination")
    its_port = str(port(some, "destination"))
    network = str(ip_network(f"{target}/24", strict=False))

    def in_network(flow: JsonFlow, side: str) -> bool:
        found = ip_address(address(flow, side))
        return found.version == 4 and found in ip_network(network)

    rows: list[tuple[list[str], Matches]] = []
    for name, value, of_side in (
        ("pod", f"default/{client}", lambda f, s: pod(f, s).startswith(f"default/{client}")),
        ("pod", server, lambda f, s: pod(f, s).startswith(f"default/{server}")),
        ("namespace", "default", lambda f, s: endpoint(f, s).get("namespace") == "default"),
        ("ip", source, lambda f, s: address(f, s) == source),
        ("ip", network, in_network),
        ("label", label, lambda f, s: label in endpoint(f, s).get("labels", ())),
        ("identity", identity, lambda f, s: str(endpoint(f, s).get("identity")) == identity),
        ("port", its_port, lambda f, s: str(port(f, s)) == its_port),
        ("service", f"default/{server}", lambda f, s: service(f, s).startswith(f"default/{server}")),
        ("workload", server, lambda f, s: server in workloads(f, s)),
        ("cluster", "default", lambda f, s: endpoint(f, s).get("cluster_name") == "default"),
        ("fqdn", "*.example.org", lambda f, s: False),
    ):
        rows += [([f"--{form}{name}", value], matches) for form, matches in both(of_side).items()]
    rows += [
        (["-A"], lambda f: bool(endpoint(f, "source").get("namespace") or endpoint(f, "destination").get("namespace")))
    ]
    rows += [
        (["--from-all-namespaces"], lambda f: bool(endpoint(f, "source").get("namespace"))),
        (["--to-all-namespaces"], lambda f: bool(endpoint(f, "destination").get("namespace"))),
        (["--verdict", "DROPPED"], lambda f: f["verdict"] == "DROPPED"),
        (["--verdict", "FORWARDED"], lambda f: f["verdict"] == "FORWARDED"),
        (["--drop-reason-desc", "POLICY_DENIED"], lambda f: f.get("drop_reason_desc") == "POLICY_DENIED"),
        (["--type", "l7"], lambda f: f["event_type"]["type"] == L7),
        (["--type", "drop"], lambda f: f["event_type"]["type"] == DROP),
        (["--type", "policy-verdict"], lambda f: f["event_type"]["type"] == VERDICT_OF_POLICY),
        (["-t", str(L7), "-t", "drop"], lambda f: f["event_type"]["type"] in (L7, DROP)),
        (["--protocol", "tcp"], lambda f: "TCP" in f["l4"]),
        (["--protocol", "udp"], lambda f: "UDP" in f["l4"]),
        (["--protocol", "http"], lambda f: bool(http(f))),
        (["--tcp-flags", "SYN"], lambda f: f["l4"].get("TCP", {}).get("flags", {}).get("SYN", False)),
        (["--traffic-direction", "ingress"], lambda f: f["traffic_direction"] == "INGRESS"),
        (["--traffic-direction", "egress"], lambda f: f["traffic_direction"] == "EGRESS"),
        (["--ipv4"], lambda f: f["IP"]["ipVersion"] == "IPv4"),
        (["--ipv6"], lambda f: f["IP"]["ipVersion"] == "IPv6"),
        (["--ip-version", "v6"], lambda f: f["IP"]["ipVersion"] == "IPv6"),
        (["--http-status", "403"], lambda f: http(f).get("code") == 403),
        (["--http-status", "2+"], lambda f: 200 <= http(f).get("code", 0) < 300),
        (["--http-method", "post"], lambda f: http(f).get("method") == "POST"),
        (["--http-path", "^/admin"], lambda f: path(f).startswith("/admin")),
        (["--http-url", "http://.*/api/"], lambda f: bool(re.search("http://.*/api/", http(f).get("url", "")))),
        (["--http-header", "authorization:x"], lambda f: False),
        (["--node-name", some["node_name"]], lambda f: f["node_name"] == some["node_name"]),
        (["--uuid", some["uuid"]], lambda f: f["uuid"] == some["uuid"]),
        (["--interface", "none0"], lambda f: False),
        (["--snat-ip", source], lambda f: False),
        (["--ip-trace-id", "7"], lambda f: False),
        (["--encrypted"], lambda f: False),
        (["--not", "--verdict", "DROPPED"], lambda f: f["verdict"] != "DROPPED"),
        (["--not", "--from-pod", client], lambda f: not pod(f, "source").startswith(f"default/{client}")),
        (["--from-pod", client, "--verdict", "DROPPED"],
         lambda f: pod(f, "source").startswith(f"default/{client}") and f["verdict"] == "DROPPED"),
        (["--allowlist", '{"http_method":["POST"]}'], lambda f: http(f).get("method") == "POST"),
        (["--denylist", '{"http_method":["POST"]}'], lambda f: http(f).get("method") != "POST"),
        (["--since", "1h"], lambda f: True),
        (["--until", "1h"], lambda f: False),
    ]  # fmt: skip
    if trace := next((one["trace_context"]["parent"]["trace_id"] for one in flows if "trace_context" in one), ""):
        rows.append(
            (["--trace-id", trace], lambda f: f.get("trace_context", {}).get("parent", {}).get("trace_id") == trace)
        )
    return rows


def wrong(cli: HubbleCli, client: str, server: str) -> tuple[list[str], set[str]]:
    """(how the answers differ from the table, the rows that select nothing of what there is)."""
    everything = cli.flows("--all")
    faults, empty = [], set()
    for flags, matches in table(client, server, everything):
        expected = ids(filter(matches, everything))
        found = ids(cli.flows(*([] if flags[0] in ("--since", "--until") else ["--all"]), *flags))
        if found != expected:
            faults.append(
                f"{' '.join(flags)}: {len(found)} flows, {len(expected)} expected, {len(found ^ expected)} differ"
            )
        if not expected:
            empty.add(" ".join(flags))
    return faults, empty
