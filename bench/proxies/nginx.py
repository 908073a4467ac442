"""nginx as the proxy: locations with the same rules, `proxy_bind … transparent`, one worker, a JSON access log.

nginx cannot create transparent listeners: it inherits one (`bench.listener`). Its pool of upstream connections is
shared by all clients and needs addresses in advance, so the server pod is named in its configuration.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from bench import programs
from bench.proxies import Place
from bench.rules import Rule

LOG = (
    '{"time":"$time_iso8601","source":"$remote_addr:$remote_port","destination":"$server_addr:$server_port",'
    '"method":"$request_method","path":"$request_uri","host":"$http_host","protocol":"$server_protocol",'
    '"status":$status,"duration":$request_time}'
)


class Nginx:
    name = "nginx"
    needs_listener = True

    def missing(self) -> str:
        return "" if shutil.which("nginx") else "nginx is not installed (apt-get install nginx-light)"

    def command(self, place: Place, chosen: Sequence[Rule]) -> list[str]:
        path = place.directory / "nginx.conf"
        path.write_text("\n".join(config(place, chosen)) + "\n")
        return ["nginx", "-p", str(place.directory), "-e", "stderr", "-c", str(path)]


def config(place: Place, chosen: Sequence[Rule]) -> Iterator[str]:
    yield "user root; worker_processes 1; daemon off; error_log stderr error;"
    yield f"pid {place.directory}/nginx.pid;"
    yield "events { worker_connections 8192; }"
    yield "http {"
    yield programs.nginx_paths(place.directory)
    yield f"log_format flow escape=json '{LOG}';"
    yield f"access_log {place.directory}/access.log flow buffer=64k flush=1s;"
    yield "keepalive_requests 100000000; keepalive_timeout 1h; client_max_body_size 0; variables_hash_max_size 4096;"
    yield "proxy_http_version 1.1; proxy_bind $remote_addr transparent;"
    yield "proxy_request_buffering off; proxy_buffering off;"
    yield 'proxy_set_header Host $http_host; proxy_set_header Connection "";'
    for port in place.ports:
        yield f"upstream pod{port} {{ server {place.server}:{port}; keepalive 1024; keepalive_requests 100000000; }}"
    yield "map $server_port $pod { " + " ".join(f"{port} pod{port};" for port in place.ports) + " }"
    yield f"server {{ listen {place.listen};"
    for path in dict.fromkeys(rule.path for rule in chosen):
        checks = _checks([rule for rule in chosen if rule.path == path])
        yield f"location ~ ^{path}$ {{ {checks} proxy_pass http://$pod; }}"
    yield "location / { return 403; }"
    yield "} }"


def _checks(same_path: Sequence[Rule]) -> str:
    """The other checks of the rules of one path: any of their methods, and the header of each method's rule."""
    methods = "|".join(rule.method for rule in same_path)
    checks = [f"if ($request_method !~ ^({methods})$) {{ return 403; }}"]
    for rule in same_path:
        if rule.header:
            variable = rule.header.lower().replace("-", "_")
            checks.append(f'if ($http_{variable} = "") {{ return 403; }}')
    return " ".join(checks)
