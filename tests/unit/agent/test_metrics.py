"""What a scrape of the agent gets: over HTTP, read with Prometheus' own parsers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from l7proxy.agent import health
from l7proxy.agent.exporters import Exporters
from l7proxy.agent.flow_recorder import Recorder
from l7proxy.agent.metrics import Scraper
from l7proxy.flows.flow import IP, CiliumEventType, Flow, Layer4, Ports
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks.feed import Feed
from l7proxy.model.resources import Pod, Upsert
from l7proxy.setting_definitions import Settings
from l7proxy.sources.source import SYNCED, SourceHealth
from tests.unit.agent.idle_agent import idle_parts

WEB = Pod("shop", "web", "n1", ("10.0.1.5",), {"app": "web"})
PREFIX = "hubble_dynamic_exporter_"
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


class Agent:
    """The parts of an agent, with the fake kernel; nothing runs."""

    def __init__(self, directory: Path, *, metrics: str = "flow", address: str = "127.0.0.1:9965") -> None:
        settings = Settings(node="n1", source=str(directory), metrics_address=address, flow_metrics=metrics, workers=2)
        recorder = Recorder(Ring(15), node="n1")
        self.scraper = Scraper(settings, recorder)
        self.recorder = recorder
        self.parts = idle_parts(settings, recorder, on_published=recorder.published, on_delay=self.scraper.enforced)
        self.reconciler = self.parts.reconciler

    async def scrape(self, accept: str = "") -> dict[str, float]:
        """Sample → value, over a real connection."""
        pages = {"/metrics": partial(self.scraper.page, self.parts)}
        async with health.HealthServer(ip_address("127.0.0.1"), 0, {}, pages=pages).serving() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        assert head.startswith(b"HTTP/1.1 200")
        wanted = accept.partition(";")[0] or "text/plain"
        assert f"content-type: {wanted}" in head.decode().lower()
        parse = parse_openmetrics if "openmetrics" in wanted else parse_text
        found = {}
        for family in parse(body.decode()):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


async def test_before_the_source_has_been_read(tmp_path: Path) -> None:
    found = await Agent(tmp_path).scrape()
    assert found["l7proxy_ready"] == 0
    assert found["l7proxy_policy_revision"] == 0
    assert found["l7proxy_workers_expected"] == 2
    assert found["l7proxy_policy_enforcement_seconds_count"] == 0
    assert "l7proxy_source_age_seconds" not in found, "it was never reached"
    assert found["process_open_fds"] > 0


async def test_what_is_enforced_is_told_in_both_formats(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.reconciler.submit([Upsert(WEB), *SYNCED], SourceHealth())
    await agent.reconciler.step()
    found = await agent.scrape()
    assert found["l7proxy_ready"] == 1
    assert found["l7proxy_policy_revision"] == found["l7proxy_policy_enforced_revision"] == 1
    assert found["l7proxy_policy_enforcement_seconds_count"] == 1
    assert found["l7proxy_endpoints"] == 1
    assert found["l7proxy_kernel_intact"] == 1
    assert found["cilium_policy_max_revision"] == 1
    assert found["cilium_policy_endpoint_enforcement_status{enforcement=none}"] == 1
    assert found["cilium_endpoint_state{endpoint_state=ready}"] == 1
    other = await agent.scrape("application/openmetrics-text; version=1.0.0")
    assert other["hubble_metrics_http_handler_requests_total{code=200}"] == 1
    assert other.keys() >= {key for key in found if key.startswith(("l7proxy_", "cilium_"))}


async def test_a_change_that_the_kernel_refused_counts_from_when_it_was_read(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.reconciler.submit(SYNCED, SourceHealth())
    await agent.reconciler.step()
    await agent.reconciler.step()
    assert (await agent.scrape())["l7proxy_policy_enforcement_seconds_count"] == 1, "one change, one delay"


async def test_flows_are_counted_by_the_sink(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    flow = Flow(
        verdict="FORWARDED",
        ip=IP(source="10.0.1.5", destination="1.2.3.4"),
        l4=Layer4(tcp=Ports(destination_port=80)),
        event_type=CiliumEventType(type=5),
    )
    assert agent.scraper.flows is not None
    agent.scraper.flows.consume([flow, flow])
    found = await agent.scrape()
    assert found["hubble_flows_processed_total{protocol=TCP,subtype=,type=PolicyVerdict,verdict=FORWARDED}"] == 2


async def test_many_scrapes_at_once_cost_one(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    await asyncio.gather(*(agent.scrape() for _ in range(20)))
    found = await agent.scrape("application/openmetrics-text; version=1.0.0")
    assert found["hubble_metrics_http_handler_requests_total{code=200}"] < 20


@pytest.mark.parametrize(("metrics", "address"), [("", "127.0.0.1:9965"), ("flow", "")])
def test_without_metrics_of_flows_there_is_no_sink(metrics: str, address: str, tmp_path: Path) -> None:
    assert Agent(tmp_path, metrics=metrics, address=address).scraper.flows is None


def test_a_pod_is_known_by_its_address_and_its_name(tmp_path: Path) -> None:
    assert not Agent(tmp_path).recorder.knows("10.0.1.5", "shop", "web")


async def test_the_pods_of_a_revision_are_known(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.reconciler.submit([Upsert(WEB), *SYNCED], SourceHealth())
    await agent.reconciler.step()
    assert agent.recorder.knows("10.0.1.5", "shop", "web")
    assert not agent.recorder.knows("10.0.1.5", "shop", "other")
    assert not agent.recorder.knows("10.0.1.6", "shop", "web")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_exporters_of_a_file_are_told(tmp_path: Path, accept: str) -> None:
    agent, path = Agent(tmp_path), tmp_path / "flowlogs.yaml"
    past = f"{{name: past, filePath: {tmp_path}/past.jsonl, end: '2020-01-01T00:00:00Z'}}"
    path.write_text(f"flowLogs:\n- {{name: all, filePath: {tmp_path}/all.jsonl}}\n- {past}\n")
    before, feeds = time.time(), list[Feed]()
    exporters = Exporters(path, agent.recorder.ring, feeds)
    agent.parts = replace(agent.parts, exporters=exporters, feeds=feeds)
    async with exporters.running():
        found = await agent.scrape(accept)
    of = {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX)}
    assert before <= of.pop("config_last_applied") <= time.time()
    assert of.pop("config_hash") > 0
    assert of == {
        "exporters_total{status=active}": 1,
        "exporters_total{status=inactive}": 1,
        "up{name=all}": 1,
        "up{name=past}": 0,
        **{
            f"reconfigurations_total{{op={op}}}": count
            for op, count in {"add": 2, "update": 0, "remove": 0, "failure": 0}.items()
        },
    }
    assert found["l7proxy_sink_behind{sink=exporter all}"] == 0


async def test_every_metric_is_documented(tmp_path: Path) -> None:
    path = tmp_path / "flowlogs.yaml"
    path.write_text("flowLogs: []")
    everything = "flow drop tcp icmp dns httpV2 port-distribution flows-to-world policy cilium"
    agent = Agent(tmp_path, metrics=everything)
    agent.parts = replace(agent.parts, exporters=Exporters(path, agent.recorder.ring, []))
    agent.reconciler.submit([Upsert(WEB), *SYNCED], SourceHealth())
    await agent.reconciler.step()
    pages = partial(agent.scraper.page, agent.parts)
    _, body = await pages("")
    text = DOCUMENT.read_text()
    named = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
    assert not {name for name in named if not name.startswith("process_") and f"`{name}" not in text}
