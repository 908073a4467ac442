"""HAProxy as the proxy: transparent bind, client's address kept (`usesrc clientip`), ACLs with the same rules, path
normalised first, one thread, a JSON line per request to standard output, which is a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from bench.proxies import Place
from bench.rules import Rule

LOG = (
    '{"time":"%Tl","source":"%ci:%cp","destination":"%fi:%fp","method":"%HM","path":"%[capture.req.uri,json(utf8s)]",'
    '"host":"%[capture.req.hdr(0),json(utf8s)]","protocol":"%HV","status":%ST,"details":"%tsc","duration":%Ta}'
)


class HAProxy:
    name = "haproxy"
    needs_listener = False

    def missing(self) -> str:
        return "" if shutil.which("haproxy") else "HAProxy is not installed (apt-get install haproxy)"

    def command(self, place: Place, chosen: Sequence[Rule]) -> list[str]:
        path = place.directory / "haproxy.cfg"
        path.write_text("\n".join(config(place, chosen)) + "\n")
        return ["haproxy", "-db", "-f", str(path)]


def config(place: Place, chosen: Sequence[Rule]) -> Iterator[str]:
    yield "global"
    yield "  nbthread 1"
    yield "  maxconn 4000"
    yield "  expose-experimental-directives"
    yield "  log stdout format raw local0"
    yield "defaults"
    yield "  mode http"
    yield "  timeout connect 5s"
    yield "  timeout client 1h"
    yield "  timeout server 1h"
    yield "  log global"
    escaped = LOG.replace('"', r"\"")
    yield f'  log-format "{escaped}"'
    yield "frontend tproxy"
    yield f"  bind 127.0.0.1:{place.listen} transparent"
    yield "  declare capture request len 128"
    yield "  http-request capture req.hdr(host) id 0"
    for step in ("path-merge-slashes", "path-strip-dotdot full", "percent-to-uppercase"):
        yield f"  http-request normalize-uri {step}"
    for rule in chosen:
        clauses = [f"{{ method {rule.method} }}", f"{{ path_reg ^{rule.path}$ }}"]
        if rule.header:
            clauses.append(f"{{ req.hdr({rule.header}) -m found }}")
        yield f"  http-request allow if {' '.join(clauses)}"
    yield "  http-request deny"
    yield "  default_backend pod"
    yield "backend pod"
    # Each client connection keeps its own upstream connection; any other mode opens one for each request.
    yield "  http-reuse never"
    yield "  source 0.0.0.0 usesrc clientip"
    yield "  server pod 0.0.0.0"
