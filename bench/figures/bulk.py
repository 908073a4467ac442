"""CPU per gigabyte in bodies of 100 MB, download and upload. The client is curl."""

from __future__ import annotations

import sys

from bench.figures import Effort, OnStage, Report
from bench.figures.turns import against, take
from bench.row import Goal, Row
from bench.stage import BULK, Running, Stage, cost

BODY = 100_000_000
GOAL = Goal(0.5)


def measure(place: Stage, effort: Effort, report: Report) -> list[Row]:
    count = 3 if effort.quick else 10
    body = place.directory / "body"
    with body.open("wb") as file:
        file.truncate(BODY)  # a sparse file: no disk reads
    url = f"http://{place.server}:{BULK}/bulk"
    curl = ["curl", "-s", "-f", "-m", "60", "-H", "Expect:"]
    down = [*curl, *(part for _ in range(count) for part in ("-o", "/dev/null", f"{url}/{BODY}"))]
    up = [*curl, *(part for _ in range(count) for part in ("-T", str(body), f"{url}/up")), "-X", "POST"]

    def turn(running: Running) -> dict[str, float]:
        _, sent = cost(running, lambda: place.from_client(*down, seconds=120))
        _, taken = cost(running, lambda: place.from_client(*up, seconds=120))
        gigabytes = BODY * count / 1e9
        return {"down": sent.total / gigabytes, "up": taken.total / gigabytes}

    with place.serving(BULK, sys.executable, "-m", "bench.bulk_server", str(BULK)):
        found = take(place, effort, report, turn)
    return [
        against(f"CPU per GB, bodies of 100 MB {way}", "s", found[key], peer, goal=GOAL if peer == "envoy" else None)
        for key, way in (("down", "down"), ("up", "up"))
        for peer in ("envoy", "haproxy", "nginx")
    ]


FIGURE = OnStage("bulk", "CPU per GB for 100 MB bodies, both directions", measure)
