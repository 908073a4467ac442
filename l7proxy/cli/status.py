"""`l7proxy status` and lists of endpoints, identities and Services of a running node, from the agent's socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import typer

from l7proxy.agent import client
from l7proxy.cli import agent_socket
from l7proxy.cli.agent_socket import RunDir, Server, as_object
from l7proxy.cli.terminal import Format, counted, paint, plain, show_json, show_list, table
from l7proxy.errors import ConfigError, SourceError
from l7proxy.model.shorten import shortened

endpoint = typer.Typer(help="Pods of this node and their enforcement.", no_args_is_help=True, rich_markup_mode=None)
identity = typer.Typer(help="Security identities known to this node.", no_args_is_help=True, rich_markup_mode=None)
services = typer.Typer(help="Services known to this node.", no_args_is_help=True, rich_markup_mode=None)

SHOWN: Final = 10
"""Maximum lines printed of a list that can grow; the JSON has all of them."""
SINK: Final = (("name", ""), ("written", 0), ("lost", 0), ("problem", "-"))
"""What is shown of a sink, and what stands for a missing value."""
Output = Annotated[Format, typer.Option("--output", "-o", help="Output format.")]


def status(
    output: Output = Format.TABLE,
    ready: Annotated[bool, typer.Option("--ready", help="Only whether the node is ready, as /readyz answers.")] = False,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Whether all policies are enforced. Exit code 0: yes; 1: no, with the reasons; 2: no agent.

    A node is ready when it enforces what it has read, even if single policies are refused.

    \b
    l7proxy status
    l7proxy status --ready
    l7proxy status -o json | jq .policies
    """
    found = as_object(client.ask(agent_socket.path_of(run_dir, server), "status"))
    complaints = list(found.get("not_ready") or [] if ready else troubles(found))
    if ready and output is Format.TABLE:
        print(*map(plain, complaints or ["ready"]), sep="\n")
    elif output is Format.JSON:
        show_json(found)
    else:
        _show_status(found, complaints)
    raise typer.Exit(1 if complaints else 0)


def troubles(found: Mapping[str, Any]) -> Iterable[str]:
    """Everything that keeps the node from enforcing all policies, in words. Empty if all are enforced."""
    source, kernel = as_object(found.get("source") or {}), as_object(found.get("kernel") or {})
    if not source.get("synced"):
        yield "source: not fully read yet"
    if source.get("reachable") is False:
        yield f"source: not reached for {source.get('age') or 0:.0f} s: what was read last stays in force"
    for problem in source.get("problems") or []:
        yield str(SourceError(**problem))
    if found.get("revision") != found.get("enforced_revision"):
        yield f"revision {found.get('revision')} is not enforced yet, still {found.get('enforced_revision') or 'none'}"
    if kernel.get("error"):
        yield f"kernel: {kernel['error']}"
    elif not kernel.get("intact"):
        yield "kernel: the rules differ from those installed"
    if error := as_object(kernel.get("conntrack") or {}).get("error"):
        yield f"kernel: connections that policy now refuses may still be open: {error}"
    workers = found.get("workers") or []
    if not workers:
        yield "no worker is connected: traffic to ports with L7 rules is refused"
    for worker in workers:
        if worker.get("revision") != found.get("revision"):
            yield f"worker {worker.get('worker')} (pid {worker.get('pid')}) enforces revision {worker.get('revision')}"
        for problem in worker.get("problems") or []:
            yield f"worker {worker.get('worker')}: {problem}"
    for policy in found.get("policies") or []:
        if policy.get("state") not in ("enforced", "staged"):
            version = f" (generation {policy['generation']})" if policy.get("generation") else ""
            yield f"{policy_name(policy)}{version}: {policy.get('state')}: {policy.get('reason')}"


def not_covered(found: Mapping[str, Any]) -> Iterable[str]:
    """What policies do not apply to although it belongs to a pod: no fault, and nothing that l7proxy could enforce."""
    for one in found.get("secondary_interfaces") or []:
        yield f"pod {one.get('pod')}: {_secondary(one)}: no policy applies to it"
    for policy in found.get("policies") or []:
        if on_host := host_network(policy):
            yield f"{policy_name(policy)} {on_host}"


def host_network(policy: Mapping[str, Any]) -> str:
    """The hostNetwork pods that a policy selects, which share their node's identity; empty if there are none."""
    pods = policy.get("host_network") or []
    return f"selects {_count(pods, 'hostNetwork pod')}, not enforced: {shortened(pods, SHOWN)}" if pods else ""


def _secondary(one: Mapping[str, Any]) -> str:
    """An interface of a pod on another network than the pod network."""
    addresses = ", ".join(one.get("addresses") or []) or "no address"
    name = one.get("interface") or one.get("host") or "unknown"
    return f"interface {name} ({addresses}) of network {one.get('network') or 'unknown'}"


def policy_name(policy: Mapping[str, Any]) -> str:
    return f"{policy.get('kind')} {policy_of(policy)}"


def policy_of(ref: Mapping[str, Any]) -> str:
    """NAMESPACE/NAME."""
    return "/".join(str(ref[key]) for key in ("namespace", "name") if ref.get(key))


def _show_status(found: Mapping[str, Any], complaints: list[str]) -> None:
    colour = paint()
    source, kernel, flows = (as_object(found.get(name) or {}) for name in ("source", "kernel", "flows"))
    policies, endpoints = found.get("policies") or [], found.get("endpoints") or []
    verdict = colour("not all enforced", "red") if complaints else colour("all enforced", "green")
    l7 = sum("l7" in (one.get("ingress"), one.get("egress")) for one in endpoints)
    enforced = sum(policy.get("state") == "enforced" for policy in policies)
    staged = sum(policy.get("state") == "staged" for policy in policies)
    part = "file" if source.get("kind") == "files" else "resource"
    rows = [
        ("Node", f"{found.get('node')}  (l7proxy {', '.join(_texts(found, 'version', 'build'))})"),
        ("State", f"{verdict}, revision {found.get('enforced_revision')} of {found.get('revision')}"),
        ("Source", f"{' '.join(_texts(source, 'kind', 'location'))}: {_count(source.get('detail') or [], part)}"),
        ("Kernel", f"{found.get('backend')}, {_kernel(kernel)}"),
        ("Policies", f"{enforced} of {len(policies) - staged} enforced" + (f", {staged} staged" if staged else "")),
        ("Endpoints", f"{len(endpoints)}, {l7} with L7 rules"),
        *([("Cluster", _cluster(as_object(found["cluster"])))] if found.get("cluster") else []),
        *([("Audit", audit)] if (audit := _audit(found)) else []),
        ("Flows", f"{flows.get('seen', 0)} seen, {flows.get('lost', 0)} lost, buffer of {flows.get('capacity', 0)}"),
        *([("Shadow", _shadow(as_object(found["shadow"])))] if found.get("shadow") else []),
    ]
    for name, text in rows:
        print(f"{colour(name.ljust(10), 'bold')} {text if name == 'State' else plain(text)}")
    print()
    workers = found.get("workers") or []
    keys = ("worker", "pid", "revision", "connections", "requests", "denied")
    table([key.upper() for key in keys], [[one.get(key, "") for key in keys] for one in workers], empty="No workers.")
    if sinks := flows.get("sinks"):
        print()
        table(("FLOWS TO", "WRITTEN", "LOST", "PROBLEM"), map(_sink, sinks))
    _section("Verdicts without a flow (rate limit):", map(_rate_limited, (flows.get("rate_limited") or [])[:SHOWN]))
    unknown = found.get("unknown_pods") or []
    _section("Unknown pods:", (_unknown(one, audit=bool(found.get("audit"))) for one in unknown))
    _section("Not covered:", not_covered(found))
    _section("Settings:", _settings(as_object(found.get("settings") or {})))
    _section("Flow logs:", filter(None, [str(flows.get("exporters_problem") or "")]))
    _section("Not enforced:", complaints)


def _settings(settings: Mapping[str, Any]) -> Iterable[str]:
    """What of the configuration file is not in force."""
    if error := settings.get("error"):
        yield f"{error}; the last good settings stay in force"
    for name in settings.get("restart_needed") or []:
        yield f"restart needed: {name}"


def _section(title: str, lines: Iterable[str]) -> None:
    """The lines under their title; nothing if there are none."""
    shown = [f"  {plain(line)}" for line in lines]
    if shown:
        print(f"\n{paint()(title, 'bold')}", *shown, sep="\n")


def _sink(sink: Mapping[str, Any]) -> tuple[object, ...]:
    """Flow log, exporters, metrics, …: what each has got and lost."""
    return tuple(sink.get(key) or default for key, default in SINK)


def _shadow(shadow: Mapping[str, Any]) -> str:
    """What the policies that are not in force would do."""
    counts = counted(as_object(shadow.get("would") or {})) or "no flows yet"
    return "; ".join(filter(None, (f"{shadow.get('policies')}: {counts}", str(shadow.get("problem") or ""))))


def _rate_limited(one: Mapping[str, Any]) -> str:
    """Packets of one sender with the same verdict."""
    sender = one.get("pod") or one.get("source") or "other senders"
    policy = f" by {one.get('direction')} policy of {one['policy_of']}" if one.get("policy_of") else ""
    return f"{one.get('packets')} packets from {sender}: {one.get('reason')}{policy}"


def _unknown(one: Mapping[str, Any], *, audit: bool) -> str:
    """A pod interface that the CNI has attached but that belongs to no known Pod."""
    whose = f" of {one['pod']}" if one.get("pod") else ""
    state = "allowed (audit)" if audit else "traffic refused"
    return (
        f"pod interface {one.get('interface')} ({', '.join(one.get('addresses') or [])}){whose}: no Pod object, {state}"
    )


def _cluster(cluster: Mapping[str, Any]) -> str:
    """What the cluster is told of this node, and who writes the status of policies."""
    told = "reported" if cluster.get("reported") else "not reported yet"
    writer = "this node" if cluster.get("leading") else cluster.get("leader") or "nobody yet"
    parts = (f"{told}, lease {cluster.get('lease')}", f"status of policies is written by {writer}")
    return "; ".join((*parts, *map(str, cluster.get("problems") or ())))


def _audit(found: Mapping[str, Any]) -> str:
    """Traffic that is allowed although policy refuses it: must not be overlooked."""
    if found.get("audit"):
        return "node: nothing is refused by policy, verdicts are reported as AUDIT"
    policies = [policy_name(one) for one in found.get("policies") or [] if one.get("audit")]
    pods = sum(bool(one.get("audit")) for one in found.get("endpoints") or [])
    parts = [", ".join(policies)] if policies else []
    parts += [f"{_count(range(pods), 'endpoint')} by namespace annotation"] if pods else []
    return "; ".join(parts)


def _kernel(kernel: Mapping[str, Any]) -> str:
    state = "intact" if kernel.get("intact") and not kernel.get("error") else "not as installed"
    again = kernel.get("restored") or 0
    return f"{state}, restored {again} time{'' if again == 1 else 's'}" if again else state


def _texts(found: Mapping[str, Any], *names: str) -> list[str]:
    """The non-empty ones of these fields."""
    return [str(found[name]) for name in names if found.get(name)]


def _count(things: Any, word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


@endpoint.command("list", short_help="List the pods of this node.")
def endpoint_list(output: Output = Format.TABLE, run_dir: RunDir = agent_socket.RUN_DIR, server: Server = "") -> None:
    """List the pods of this node: address, identity, and per direction `open` (no policy), `l4` or `l7`."""
    found = agent_socket.ask_list(run_dir, server, "endpoints")
    headers = ("ID", "POD", "ADDRESSES", "IDENTITY", "INGRESS", "EGRESS", "PORT")
    show_list(found, output, headers, _endpoint_row, empty="No pods on this node.")


def _endpoint_row(one: Mapping[str, Any]) -> tuple[object, ...]:
    """Without the pod's interface on the node, its source addresses are not checked."""
    port = (one.get("port") or {}).get("interface", "unknown")
    if one.get("secondary"):
        port += f" (not covered: {', '.join(each['interface'] or each['host'] for each in one['secondary'])})"
    addresses = ",".join(one.get("addresses") or [])
    return one.get("id"), _pod(one), addresses, one.get("identity"), one.get("ingress"), one.get("egress"), port


@endpoint.command("get", short_help="Show one pod of this node.")
def endpoint_get(
    which: Annotated[
        str, typer.Argument(metavar="ID|NS/POD", help="Endpoint ID, NAMESPACE/POD, or POD in namespace default.")
    ],
    output: Output = Format.TABLE,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Show one pod of this node."""
    found = agent_socket.ask_list(run_dir, server, "endpoints")
    one = pick(found, which)
    if output is Format.JSON:
        show_json(one)
        return
    for key, value in one.items():
        if key == "secondary":
            value = [f"{_secondary(each)}: not covered" for each in value]
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{paint()(key.ljust(10), 'bold')} {plain(str(text if text is not None else '-'))}")


def pick(endpoints: list[dict[str, Any]], which: str) -> dict[str, Any]:
    """The endpoint with this ID or name; ConfigError lists the known ones."""
    wanted = which if "/" in which else f"default/{which}"
    for one in endpoints:
        if str(one.get("id")) == which or _pod(one) == wanted:
            return one
    known = ", ".join(sorted(map(_pod, endpoints))[:10]) or "none"
    raise ConfigError(f"no endpoint {which} on this node (endpoints: {known})")


@identity.command("list", short_help="List the identities known to this node.")
def identity_list(output: Output = Format.TABLE, run_dir: RunDir = agent_socket.RUN_DIR, server: Server = "") -> None:
    """List the identities known to this node: reserved ones, those of pods, and those of CIDRs in policies."""
    found = agent_socket.ask_list(run_dir, server, "identities")
    show_list(found, output, ("ID", "LABELS"), lambda one: (one.get("id"), _labels(one)), empty="No identities.")


def _labels(one: Mapping[str, Any]) -> str:
    """Several identities can have equal labels, if policies name CIDRs that contain only some of their addresses."""
    networks = one.get("networks")
    return " ".join(one.get("labels") or []) + (f" (in {', '.join(networks)})" if networks else "")


@services.command("list", short_help="List Service frontends and their backends.")
def service_list(output: Output = Format.TABLE, run_dir: RunDir = agent_socket.RUN_DIR, server: Server = "") -> None:
    """List Service frontends and their backends."""
    found = agent_socket.ask_list(run_dir, server, "services")
    show_list(found, output, ("SERVICE", "FRONTEND", "BACKENDS"), _service_row, empty="No Services.")


def _service_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    backends = ", ".join(map(_address, one.get("backends") or [])) or "none"
    return f"{one.get('namespace')}/{one.get('service')}", f"{_address(one)}/{one.get('protocol')}", backends


def _address(one: Mapping[str, Any]) -> str:
    address = str(one.get("address"))
    return f"[{address}]:{one.get('port')}" if ":" in address else f"{address}:{one.get('port')}"


def _pod(one: Mapping[str, Any]) -> str:
    return f"{one.get('namespace')}/{one.get('name')}"
