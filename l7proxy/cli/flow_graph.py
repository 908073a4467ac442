"""Draws who speaks to whom, with what was allowed and denied: as Mermaid's text, or as a picture by Graphviz.

A node is a workload (else a pod, a Service, a name, an identity or an address), in a box of its namespace. An edge is
traffic to one port. Requests count where there are any, else verdicts on connections, else packets.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from l7proxy.cli.terminal import plain
from l7proxy.errors import ConfigError
from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows.flow import Endpoint, Flow

TEXTS: Final = (".mmd", ".mermaid", ".dot", ".gv")
PICTURES: Final = (".svg", ".png", ".pdf")
OUTCOMES: Final[Mapping[str, str]] = {
    "FORWARDED": "allowed",
    "REDIRECTED": "allowed",
    "TRACED": "allowed",
    "TRANSLATED": "allowed",
    "DROPPED": "denied",
    "ERROR": "denied",
    "AUDIT": "audited",
}
COLOURS: Final = {"denied": "#c62828", "audited": "#b26a00", "allowed": "#2e7d32"}
"""The worst outcome of an edge is its colour."""
OUTSIDE: Final = ""
"""The namespace of what is in none."""


@dataclass(frozen=True, slots=True, order=True)
class Node:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """`port`: 80/TCP, or the protocol alone."""

    source: Node
    destination: Node
    port: str


@dataclass(slots=True)
class Counts:
    """Of one edge, by what was counted and its outcome."""

    requests: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    packets: Counter[str] = field(default_factory=Counter)

    def shown(self) -> Counter[str]:
        """A refusal of a connection counts beside requests; its drop is the same refusal again."""
        refused = self.verdicts["denied"] or self.packets["denied"]
        most = next((found for found in (self.requests, self.verdicts, self.packets) if found), Counter[str]())
        return most if most is not self.requests else most + Counter(denied=refused)


Graph = Mapping[Edge, Counts]


def of(flows: Iterable[Flow]) -> Graph:
    """Replies are left out: their requests count."""
    found: dict[Edge, Counts] = {}
    for flow in flows:
        if flow.is_reply or flow.ip is None:
            continue
        edge = Edge(_node(flow, source=True), _node(flow, source=False), _port(flow))
        _count(found.setdefault(edge, Counts()), flow)
    return dict(sorted(found.items()))


def _count(counts: Counts, flow: Flow) -> None:
    kind = flow.event_type.type if flow.event_type else 0
    counter = (
        counts.requests
        if flow.l7 is not None
        else counts.verdicts
        if kind == hubble.EventType.POLICY_VERDICT
        else counts.packets
    )
    counter[OUTCOMES.get(flow.verdict, "allowed")] += 1


def _node(flow: Flow, *, source: bool) -> Node:
    end = (flow.source if source else flow.destination) or Endpoint()
    service = flow.source_service if source else flow.destination_service
    names = flow.source_names if source else flow.destination_names
    address = (flow.ip.source if source else flow.ip.destination) if flow.ip else ""
    if end.workloads and end.workloads[0].name:
        return Node(end.namespace, end.workloads[0].name)
    if end.pod_name:
        return Node(end.namespace, end.pod_name)
    if service is not None and service.name:
        return Node(service.namespace, service.name)
    if names:
        return Node(OUTSIDE, names[0])
    if 0 < end.identity < len(hubble.RESERVED_NAMES):
        return Node(OUTSIDE, hubble.RESERVED_NAMES[end.identity])
    return Node(end.namespace, address or "unknown")


def _port(flow: Flow) -> str:
    l4 = flow.l4
    if l4 is None:
        return "IP"
    for name, ports in (("TCP", l4.tcp), ("UDP", l4.udp), ("SCTP", l4.sctp)):
        if ports is not None:
            return f"{ports.destination_port}/{name}"
    return "ICMP" if l4.icmpv4 or l4.icmpv6 else "IP"


def draw(flows: Iterable[Flow], file: str) -> None:
    """To the file, in the format of its suffix; without one Mermaid's text to standard output."""
    suffix = Path(file).suffix.lower()
    if file and suffix not in (*TEXTS, *PICTURES):
        raise ConfigError(f"--graph {file}: must end in {', '.join((*PICTURES, *TEXTS))}")
    program = shutil.which("dot") if suffix in PICTURES else ""
    if program is None:
        raise ConfigError(
            f"--graph {file}: needs the program `dot`: install Graphviz (apt install graphviz), or use -o mermaid"
        )
    graph = of(flows)
    text = "\n".join(dot(graph) if suffix in (*PICTURES, ".dot", ".gv") else mermaid(graph)) + "\n"
    if not file:
        print(text, end="")
        return
    try:
        content = _rendered(program, suffix, text) if program else text.encode()
        Path(file).write_bytes(content)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"--graph {file}: {getattr(error, 'strerror', None) or error}") from error


def _rendered(program: str, suffix: str, text: str) -> bytes:
    return subprocess.run(
        [program, f"-T{suffix.removeprefix('.')}"], input=text.encode(), stdout=subprocess.PIPE, check=True
    ).stdout


def _grouped(graph: Graph) -> tuple[dict[Node, str], dict[str, list[Node]]]:
    """Each node's key in the text, and the nodes of each namespace."""
    nodes = sorted({node for edge in graph for node in (edge.source, edge.destination)})
    keys = {node: f"n{number}" for number, node in enumerate(nodes, 1)}
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(node.namespace, []).append(node)
    return keys, groups


def _label(edge: Edge, counts: Counts) -> tuple[str, str, str]:
    """(port, counts, colour)."""
    shown = counts.shown()
    words = [f"{shown[outcome]} {outcome}" for outcome in ("allowed", "audited", "denied") if shown[outcome]]
    colour = next((colour for outcome, colour in COLOURS.items() if shown[outcome]), COLOURS["allowed"])
    return edge.port, ", ".join(words), colour


def mermaid(graph: Graph) -> Iterator[str]:
    """A flowchart (mermaid.js.org)."""
    keys, groups = _grouped(graph)
    yield "flowchart LR"
    for number, (namespace, nodes) in enumerate(groups.items(), 1):
        inside = "  "
        if namespace:
            yield f'  subgraph g{number}["{_entities(namespace)}"]'
            inside = "    "
        yield from (f'{inside}{keys[node]}["{_entities(node.name)}"]' for node in nodes)
        if namespace:
            yield "  end"
    styles = []
    for number, (edge, counts) in enumerate(graph.items()):
        port, words, colour = _label(edge, counts)
        yield f'  {keys[edge.source]} -->|"{_entities(port)}<br>{words}"| {keys[edge.destination]}'
        styles.append(f"  linkStyle {number} stroke:{colour},color:{colour}")
    yield from styles


def _entities(text: str) -> str:
    """Nothing in a name is markup: names come from pods, too."""
    return "".join(char if char.isalnum() or char in " ._/:-" else f"#{ord(char)};" for char in plain(text))


def dot(graph: Graph) -> Iterator[str]:
    """Graphviz's text."""
    keys, groups = _grouped(graph)
    yield "digraph flows {"
    yield '  graph [rankdir=LR, nodesep=0.35, ranksep=1.2, pad=0.3, bgcolor=white, fontname="Helvetica"]'
    yield '  node [shape=box, style="rounded,filled", fillcolor="#e8f0fe", color="#5f6368", fontname="Helvetica"]'
    yield '  edge [fontname="Helvetica", fontsize=10, penwidth=1.5]'
    for number, (namespace, nodes) in enumerate(groups.items(), 1):
        if namespace:
            yield f"  subgraph cluster_{number} {{"
            yield f'    label={_quoted(namespace)}; style="rounded,filled"; color="#bdc1c6"; fillcolor="#f8f9fa"'
        fill = "" if namespace else ', fillcolor="#fef7e0"'
        yield from (f"    {keys[node]} [label={_quoted(node.name)}{fill}]" for node in nodes)
        if namespace:
            yield "  }"
    for edge, counts in graph.items():
        port, words, colour = _label(edge, counts)
        label = f"label={_quoted(port, words)}, color={_quoted(colour)}, fontcolor={_quoted(colour)}"
        yield f"  {keys[edge.source]} -> {keys[edge.destination]} [{label}]"
    yield "}"


def _quoted(*lines: str) -> str:
    escaped = (plain(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
