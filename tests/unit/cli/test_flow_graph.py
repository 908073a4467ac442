"""Pictures of who speaks to whom."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as Xml
from pathlib import Path

import pytest

from l7proxy.cli import flow_graph
from l7proxy.flows.flow import IP, CiliumEventType, Endpoint, Flow, Http, Layer4, Layer7, Ports, Workload
from tests.unit.cli.conftest import Run

SAMPLES = str(Path(__file__).parents[2] / "data/flows/hubble_samples.jsonl")
PICTURE = """flowchart LR
  n1["example.com"]
  subgraph g2["default"]
    n2["backend"]
    n3["backend-svc"]
    n4["client"]
  end
  subgraph g3["kube-system"]
    n5["coredns"]
  end
  n4 -->|"443/TCP<br>1 allowed"| n1
  n4 -->|"22/TCP<br>1 denied"| n2
  n4 -->|"80/TCP<br>1 allowed, 1 denied"| n2
  n4 -->|"81/TCP<br>1 denied"| n2
  n4 -->|"ICMP<br>1 allowed"| n2
  n4 -->|"80/TCP<br>1 allowed"| n3
  n4 -->|"53/UDP<br>1 allowed, 1 denied"| n5
  linkStyle 0 stroke:#2e7d32,color:#2e7d32
  linkStyle 1 stroke:#c62828,color:#c62828
  linkStyle 2 stroke:#c62828,color:#c62828
  linkStyle 3 stroke:#c62828,color:#c62828
  linkStyle 4 stroke:#2e7d32,color:#2e7d32
  linkStyle 5 stroke:#2e7d32,color:#2e7d32
  linkStyle 6 stroke:#c62828,color:#c62828
"""


def flow(verdict: str, *, kind: int = 5, name: str = "web", http: bool = False, reply: bool | None = False) -> Flow:
    return Flow(
        verdict=verdict,
        ip=IP(source="10.0.0.1", destination="10.0.0.2"),
        l4=Layer4(tcp=Ports(source_port=50000, destination_port=80)),
        source=Endpoint(namespace="a", pod_name=name, workloads=(Workload(name=name, kind="Deployment"),)),
        destination=Endpoint(identity=2),
        event_type=CiliumEventType(type=129 if http else kind),
        l7=Layer7(type="REQUEST", http=Http()) if http else None,
        is_reply=reply,
    )


def shown(*flows: Flow) -> list[dict[str, int]]:
    return [dict(counts.shown()) for counts in flow_graph.of(flows).values()]


def test_samples_as_mermaid(run: Run, tmp_path: Path) -> None:
    found = run("observe", "--input-file", SAMPLES, "-o", "mermaid")
    assert (found.returncode, found.stdout) == (0, PICTURE)
    assert run("observe", "--input-file", SAMPLES, "--graph", str(tmp_path / "g.mmd")).stdout == ""
    assert (tmp_path / "g.mmd").read_text() == PICTURE
    one = run("observe", "--input-file", SAMPLES, "-o", "mermaid", "--verdict", "DROPPED", "--to-port", "22").stdout
    assert one.count("-->") == 1 and "22/TCP<br>1 denied" in one


def test_requests_count_before_connections_and_these_before_packets() -> None:
    connection, packet = flow("FORWARDED"), flow("FORWARDED", kind=4)
    assert shown(packet, packet) == [{"allowed": 2}]
    assert shown(connection, packet, packet) == [{"allowed": 1}]
    assert shown(connection, flow("FORWARDED", http=True), flow("DROPPED", http=True)) == [{"allowed": 1, "denied": 1}]
    assert shown(flow("FORWARDED", http=True), flow("DROPPED"), flow("DROPPED", kind=1)) == [
        {"allowed": 1, "denied": 1}
    ]
    assert shown(flow("FORWARDED", http=True), flow("FORWARDED", http=True, reply=True)) == [{"allowed": 1}]
    assert shown(flow("AUDIT"), flow("REDIRECTED")) == [{"audited": 1, "allowed": 1}]


def test_names_are_no_markup() -> None:
    name = 'x"]; click <b>\n\\'
    text = "\n".join(flow_graph.mermaid(flow_graph.of([flow("DROPPED", name=name)])))
    assert 'n2["x#34;#93;#59; click #60;b#62;#92;n#92;"]' in text
    assert 'label="x\\"]; click <b>\\\\n\\\\"' in "\n".join(flow_graph.dot(flow_graph.of([flow("DROPPED", name=name)])))


@pytest.mark.skipif(not shutil.which("dot"), reason="no Graphviz")
def test_samples_as_svg(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "g.svg"
    found = run("observe", "--input-file", SAMPLES, "--graph", str(picture))
    assert (found.returncode, found.stderr) == (0, ""), "the state of nodes is no flow"
    texts = [element.text for element in Xml.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {"client", "backend", "kube-system", "80/TCP", "1 allowed, 1 denied"} <= set(texts)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--graph g.gif", "must end in .svg, .png, .pdf"),
        ("--graph /nosuch/g.mmd", "--graph /nosuch/g.mmd: No such file"),
        ("-o mermaid -f", "leave out --follow"),
        ("--graph g.svg", "needs the program `dot`: install Graphviz"),
    ],
)
def test_what_cannot_be_drawn(run: Run, flags: str, told: str) -> None:
    found = run("observe", "--input-file", SAMPLES, *flags.split(), PATH="/nosuch")
    assert (found.returncode, found.stdout) == (2, "")
    assert told in found.stderr
