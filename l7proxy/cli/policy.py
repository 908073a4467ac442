"""`l7proxy policy`: shows the policies enforced on a node, and checks policy files before they are applied."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l7proxy.agent import client
from l7proxy.cli import agent_socket, policy_learn, policy_replay, policy_shadow, policy_test_report
from l7proxy.cli.agent_socket import RunDir, Server
from l7proxy.cli.status import host_network, policy_name, policy_of
from l7proxy.cli.terminal import Format, paint, plain, show_json, show_list, table
from l7proxy.errors import ConfigError, PolicyError, SourceError
from l7proxy.model.shorten import shortened
from l7proxy.setting_definitions import POLICY, Settings

if TYPE_CHECKING:
    from l7proxy.cluster.state import NodeView
    from l7proxy.model.resources import Change, PolicyDocument, Problem
    from l7proxy.policy.lang import Options
    from l7proxy.simulate.cluster import Cluster
    from l7proxy.simulate.trace import Question
    from l7proxy.sources.files.scan import DirectoryScan

app = typer.Typer(
    help="Inspect policies enforced on a node (list, get) or in files (validate, test, trace), write them from flows "
    "(learn), and compare them with flows (replay, shadow).",
    short_help="Inspect, check, trace, learn and replay policies.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("learn", short_help="Write policies from flows.")(policy_learn.learn)
app.command("replay", short_help="Show which recorded flows would have another verdict.")(policy_replay.replay)
app.command("shadow", short_help="Show which new flows would have another verdict.")(policy_shadow.shadow)
SHOWN = 30
"""Peers of one pod whose labels are shown."""
Output = Annotated[Format, typer.Option("--output", "-o", help="Output format.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file of the agent, to read manifests as it does."),
]
LikeCilium = Annotated[bool, typer.Option("--like-cilium", help="Interpret Kubernetes NetworkPolicy as Cilium does.")]


@app.command("list", short_help="List the policies of this node and their state.")
def policy_list(output: Output = Format.TABLE, run_dir: RunDir = agent_socket.RUN_DIR, server: Server = "") -> None:
    """List the policies of this node: state, reason if refused, and the number of local pods selected."""
    found = agent_socket.ask_list(run_dir, server, "policies")
    show_list(found, output, ("POLICY", "STATE", "ENDPOINTS", "FROM", "REASON"), _row, empty="No policies.")


def _row(one: Mapping[str, Any]) -> tuple[object, ...]:
    place = ":".join(str(one[key]) for key in ("file", "line") if one.get(key))
    remarks = "; ".join(filter(None, (one.get("reason"), host_network(one))))
    return policy_name(one), one.get("state"), one.get("endpoints"), place, remarks


@app.command("get", short_help="Show the rules enforced on a pod.")
def policy_get(
    which: Annotated[
        str, typer.Argument(metavar="[ENDPOINT]", help="Endpoint ID, NAMESPACE/POD or POD [default: all].")
    ] = "",
    output: Output = Format.TABLE,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Show the compiled rules that are enforced on a pod of this node (or on all), in both directions.

    \b
    l7proxy policy get default/backend
    l7proxy policy get -o json | jq '.[].ingress'
    """
    arguments = {"endpoint": which} if which else {}
    found = agent_socket.ask_list(run_dir, server, "policy", **arguments)
    if output is Format.JSON:
        show_json(found)
        return
    for index, one in enumerate(found):
        print(("\n" if index else "") + plain(f"{one['namespace']}/{one['name']} (endpoint {one['id']})"))
        for direction in ("ingress", "egress"):
            _show_direction(direction, one.get(direction))
        _show_peers(one.get("identities") or {})


def _show_peers(identities: Mapping[str, Sequence[str]]) -> None:
    """The labels of the identities. Labels that Cilium adds to every identity are omitted."""
    if not identities:
        return
    print("  peers:")
    for number, labels in list(identities.items())[:SHOWN]:
        own = [label for label in labels if not label.startswith("k8s:io.cilium.")]
        print(plain(f"    {number}: {', '.join(own)}"))
    if len(identities) > SHOWN:
        print(f"    and {len(identities) - SHOWN} more: l7proxy identity list")


def _show_direction(direction: str, policy: Mapping[str, Any] | None) -> None:
    if policy is None:
        print(f"  {direction}: open: not selected by any policy")
        return
    governed = policy.get("governed", True)
    print(
        f"  {direction}:" if governed else f"  {direction}: open: not selected by any policy, only these rules apply:"
    )
    for tier in policy["tiers"]:
        _show_tier(tier)


def _show_tier(tier: Mapping[str, Any]) -> None:
    rows = []
    for number, stage in enumerate(tier["stages"], 1):
        for entry in stage:
            action = entry["action"] + (" (audit)" if entry["audit"] else "")
            rows.append((f"{number}", action, _peers(entry), _ports(entry), rule_of(entry["rule"]), entry["refusal"]))
            l7 = entry["l7"]
            rows += [("", "", "", f"  {l7}", rule_of(rule["rule"]), _l7(rule)) for rule in (entry[l7] if l7 else ())]
    print(plain(f"    tier {tier['name']}"))
    table(("    STAGE", "ACTION", "PEERS", "PORT", "RULE", ""), [(f"    {row[0]}", *row[1:]) for row in rows])
    for key, what in (("denied_by", "is denied"), ("audited_by", "is allowed and audited")):
        by = ", ".join(policy_of(ref) for ref in tier[key])
        if by:
            print(plain(f"    default: traffic that no rule allows {what}, by {by}"))


def rule_of(ref: Mapping[str, Any]) -> str:
    return f"{policy_of(ref)} {ref.get('rule') or ''}".rstrip()


def _peers(entry: Mapping[str, Any], shown: int = 6) -> str:
    peers = entry["peers"]
    if peers is None:
        return "any"
    return shortened([str(peer) for peer in peers], shown, ",") or "none"


def _ports(entry: Mapping[str, Any]) -> str:
    if entry["protocol"] is None:
        return "every port"
    first, last, protocol = entry["first"], entry["last"], entry["protocol"]
    if (first, last) == (0, 65535):
        return f"all/{protocol}"
    shown = list(dict.fromkeys(_message(one) if protocol.startswith("ICMP") else str(one) for one in (first, last)))
    return f"{'-'.join(shown)}/{protocol}"


def _message(number: int) -> str:
    """An ICMP type: `8` (every code), or with code `3.4`."""
    kind, code = divmod(number, 256)
    return str(kind) if code in (0, 255) else f"{kind}.{code}"


def _l7(rule: Mapping[str, Any]) -> str:
    parts = [f"{key} {value}" for key, value in rule.items() if isinstance(value, str)]
    return ", ".join([*parts, *(f"header {header}" for header in _headers(rule))]) or "every request"


def _headers(rule: Mapping[str, Any]) -> list[Any]:
    return [*rule.get("headers", ()), *rule.get("header_matches", ())]


@dataclass(frozen=True, slots=True)
class Remark:
    """An error, a warning or a note about a file."""

    file: str
    line: int | None
    field: str
    message: str

    def shown(self, word: str = "") -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part)
        return plain(": ".join(part for part in (place, word, self.field, self.message) if part))


@app.command("validate", short_help="Validate policies and manifests in files.")
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files or directories; - is standard input.")],
    output: Output = Format.TABLE,
    config: Config = None,
    like_cilium: LikeCilium = False,
) -> None:
    """Validate policies and manifests. Exit code 1 with `FILE:LINE: field: message` for each error.

    Warnings are for valid rules that may have an unintended effect (an L4 rule that shadows an L7 rule, a path that
    looks like a prefix, GET without HEAD…); notes explain effects: exit code 0. More checks run if Pods are given.

    \b
    l7proxy policy validate my-policy.yaml
    kubectl get cnp -A -o yaml | l7proxy policy validate -
    """
    from l7proxy.settings import derived
    from l7proxy.simulate.cluster import Cluster
    from l7proxy.sources.files.scan import changes_of, look

    settings = _settings(config, like_cilium=like_cilium)
    options = derived.policy_options(settings)
    seen = look(files, options)
    changes = changes_of(seen)
    documents = list(_documents(changes))
    cluster = Cluster.of(changes, settings)
    view = cluster.everywhere
    faults = _sorted([*map(_remark, seen.problems), *map(_remark, view.problems), *_faults(documents, options)])
    remarks = list(_notes(documents, options))
    notes = [one for code, one in remarks if not code]
    found = [*_lint(documents, cluster), *_selecting_nothing(view)]
    warnings = _sorted([*found, *(one for code, one in remarks if code)])
    if output is Format.JSON:
        sections = {"faults": faults, "warnings": warnings, "notes": notes}
        lists = {key: [asdict(one) for one in some] for key, some in sections.items()}
        show_json({"valid": not faults} | lists | {"unread": _unread(seen)})
    else:
        for fault in faults:
            print(fault.shown())
        for warning in warnings:
            print(warning.shown("warning"))
        for note in notes:
            print(note.shown("note"))
        if not faults:
            unread = f"; ignored: {plain(', '.join(_unread(seen)))}" if _unread(seen) else ""
            count = f"{len(documents)} {'policy' if len(documents) == 1 else 'policies'}"
            print(f"{paint()('valid', 'green')}: {count}{unread}")
    raise typer.Exit(1 if faults else 0)


def _sorted(remarks: Iterable[Remark]) -> list[Remark]:
    return sorted(set(remarks), key=lambda one: (one.file, one.line or 0, one.field, one.message))


def _settings(config: Path | None, *, like_cilium: bool) -> Settings:
    from l7proxy.settings.read import load

    return load(config, {"kubernetes_network_policy": "cilium" if like_cilium else None}, used_by=POLICY)


def _unread(seen: DirectoryScan) -> list[str]:
    """The kinds of objects that are not read: they may include policies of other products."""
    from l7proxy.sources.decode import NOT_READ

    return sorted({note.message.removesuffix(NOT_READ) for note in seen.notes})


def _documents(changes: Sequence[Change]) -> Iterator[PolicyDocument]:
    from l7proxy.model.resources import PolicyDocument, Upsert

    for change in changes:
        if isinstance(change, Upsert) and isinstance(change.resource, PolicyDocument):
            yield change.resource


def _faults(documents: Sequence[PolicyDocument], options: Options) -> Iterator[Remark]:
    """Everything invalid or unsupported in each policy."""
    from l7proxy.policy import lang

    for document in documents:
        for error in lang.faults(document.document, options=options):
            if document.fault and document.parsed.at in ("", error.at):
                continue  # reported with the file; the placeholder of an unreadable document has made-up fields
            yield _remark_at(document, error.at, error.at, error.message)


def _notes(documents: Sequence[PolicyDocument], options: Options) -> Iterator[tuple[str, Remark]]:
    """Each note with its warning code, or "" if it is not a warning."""
    from l7proxy.policy import lang

    for document in documents:
        try:
            notes = lang.notes(document.document, options=options)
        except PolicyError:
            continue
        for note in notes:
            yield note.code, _remark_at(document, note.at, note.code or note.at, note.message)


def _lint(documents: Sequence[PolicyDocument], cluster: Cluster) -> Iterator[Remark]:
    """Valid rules that may have an unintended effect. More is checked if pods are given."""
    from l7proxy.policy import lint
    from l7proxy.policy.compile import compile_policies

    fields = [(document, field) for document in documents for field in lint.of_document(document.document)]
    unlearned = lint.of_names_learned(document.document for document in documents)
    for document, field in [*fields, *((documents[number], field) for number, field in unlearned)]:
        yield _remark_at(document, field.at, field.code, field.message)
    view = cluster.everywhere
    found = [finding for policy in view.policies for finding in lint.of_rules(policy.rules)]
    written = [rule for policy in view.policies for rule in policy.rules]
    if not view.endpoints:
        found += lint.of_pairs(written)
    else:
        found += lint.of_names(written, cluster.references)
        policies = compile_policies(view.rules, view.endpoints, view.identities)
        found += [*lint.of_peers(view.rules, view.identities), *lint.of_tables(policies, view.endpoints)]
    for one in found:
        yield Remark(one.ref.file, one.ref.line or None, one.code, one.message)


def _selecting_nothing(view: NodeView) -> Iterator[Remark]:
    """Policies that select no pod. Only checked if pods are given."""
    from l7proxy.cluster.policy_status import PolicyPhase

    if not view.endpoints:
        return
    for policy in view.policies:
        if policy.state in (PolicyPhase.ACCEPTED, PolicyPhase.PARTLY) and policy.rules and not view.selected(policy):
            what = f"{policy.kind} {policy.name} selects none of the given pods"
            yield Remark(policy.file, policy.line or None, "selects-no-pod", what)


def _remark(problem: SourceError | Problem) -> Remark:
    return Remark(problem.file, problem.line or None, problem.field, problem.message)


def _remark_at(document: PolicyDocument, at: str, field: str, message: str) -> Remark:
    file, line = document.locate(at)
    return Remark(file, line or None, field, message)


@app.command("test", short_help="Run unit tests of policies.")
def test(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Test files; - is standard input.")],
    output: Annotated[
        policy_test_report.Report, typer.Option("--output", "-o", help="Output format: table, tap or junit.")
    ] = (policy_test_report.Report.TABLE),
    config: Config = None,
    like_cilium: LikeCilium = False,
) -> None:
    """Run unit tests of policies offline, as in CI: expected verdicts of connections and requests.

    Exit code 0: all passed, 1: some failed, 2: a file is invalid (FILE:LINE: field: message).

    \b
    manifests: [manifests/]            # relative to this file
    cases:
    - from: shop/frontend              # PEER and PORT as in `policy trace`
      to: svc:shop/backend
      port: 80/TCP
      http: GET /api/items             # optional, with headers: ["X-Token: a"]
      expect: allow                    # or deny, redirect, audit
      because: shop/l7-policy          # optional: text that the policy or reason must contain
    """
    from l7proxy.simulate import policy_tests

    settings = _settings(config, like_cilium=like_cilium)
    try:
        books = [policy_tests.open_test_file(path) for path in files]
        results = {book.file: list(policy_tests.run(book, settings)) for book in books}
    except SourceError as error:
        raise ConfigError(str(error)) from error
    for line in policy_test_report.lines(results, output):
        print(line)
    raise typer.Exit(1 if any(one.failure for found in results.values() for one in found) else 0)


@app.command("trace", short_help="Show the verdict for a connection or request.")
def trace(
    source: Annotated[
        str, typer.Option("--from", metavar="PEER", help="Source: NS/POD, node, address or reserved:NAME.")
    ],
    destination: Annotated[str, typer.Option("--to", metavar="PEER", help="Destination: as --from, or svc:NS/NAME.")],
    port: Annotated[
        str,
        typer.Option(
            "--port", metavar="PORT/PROTO", help="Destination port or ICMP type: 80/TCP, http/TCP or 8/ICMPv4."
        ),
    ],
    paths: Annotated[
        list[Path] | None,
        typer.Option(
            "-f",
            "--filename",
            metavar="PATH",
            help="Manifests: files, directories or - [default: the state of the node's agent].",
        ),
    ] = None,
    http: Annotated[str, typer.Option("--http", metavar="'GET /x'", help="HTTP request to evaluate.")] = "",
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", metavar="'K: V'", help="Header of that request.")
    ] = None,
    output: Output = Format.TABLE,
    config: Config = None,
    like_cilium: LikeCilium = False,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Show the verdict for a connection or request, by manifests (-f) or by the state of the node's agent.

    Evaluates egress and ingress with the code that enforces them. Exit code 0: allowed, 1: denied, 2: error.
    On a port with HTTP rules the verdict is REDIRECTED unless --http gives a request.

    \b
    l7proxy policy trace -f manifests/ --from default/frontend --to default/backend --port 80/TCP
    l7proxy policy trace -f manifests/ --from 203.0.113.9 --to svc:shop/web --port http/TCP \\
        --http 'POST /cart' -H 'X-Token: abc'
    l7proxy policy trace --from default/frontend --to default/backend --port 80/TCP --http 'GET /x'
    """
    if paths:
        from l7proxy.simulate.trace import Question

        question = Question(source, destination, port, http, tuple(header or ()))
        found = _traced_offline(paths, question, _settings(config, like_cilium=like_cilium))
    elif config is not None or like_cilium:
        raise ConfigError("--config and --like-cilium require -f: the node's agent uses its own settings")
    else:
        asked = {"from": source, "to": destination, "port": port, "http": http, "headers": header or []}
        found = client.ask(agent_socket.path_of(run_dir, server), "trace", **asked)["trace"]
    if output is Format.JSON:
        show_json(found)
    else:
        _show(found)
    raise typer.Exit(1 if found["verdict"] == "DROPPED" else 0)


def _traced_offline(paths: list[Path], question: Question, settings: Settings) -> Mapping[str, Any]:
    from l7proxy.settings import derived
    from l7proxy.simulate import trace as tracing
    from l7proxy.simulate.cluster import Cluster
    from l7proxy.sources.files.scan import load

    missing = next((path for path in paths if str(path) != "-" and not path.exists()), None)
    if missing is not None:
        raise ConfigError(f"-f {missing}: no such file or directory")
    changes, problems = load(paths, derived.policy_options(settings))
    cluster = Cluster.of(changes, settings)
    for problem in [*problems, *cluster.everywhere.problems, *cluster.everywhere.secret_problems]:
        print(f"warning: {plain(str(problem))}", file=sys.stderr)
    return tracing.answer(cluster, question, derived.http_options(settings).paths).to_json()


def _show(outcome: Mapping[str, Any]) -> None:
    for index, step in enumerate(outcome["steps"]):
        print(("  " if index else "") + plain(step))
    ref, colour = outcome["policy"], "red" if outcome["verdict"] == "DROPPED" else "green"
    by = f" {outcome['direction'].lower()} by {ref['kind']} {rule_of(ref)}".rstrip() if ref else ""
    reason = f": {outcome['reason']}" if outcome["reason"] else ""
    print(f"{paint()(outcome['verdict'], colour)}{plain(by + reason)}")
