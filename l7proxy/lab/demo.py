"""`make demo`: the README's cluster and policy, some requests with expected and actual result, and their flows.

Exit code 0 if every verdict is as the policy says, 1 if one is not, 2 if the lab could not start.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Annotated, Final

import typer
from rich.console import Console

from l7proxy.lab import cli, lifecycle, scenario, show, userns
from l7proxy.lab.scenario import Case, Row, Scenario
from l7proxy.lab.settings import Cni, Families, Kernel, Settings
from l7proxy.lab.state import Lab

FRONTENDS: Final = ("frontend", "frontend-far")
STRANGERS: Final = ("stranger", "stranger-far", "elsewhere/frontend")
BOTH: Final = ("service", "pod")
TOKEN: Final = {"X-Token": "any-token-will-do"}
CASES: Final = (
    Case(from_=FRONTENDS, via=BOTH, request="GET http://backend.default/api/x", expect=200),
    Case(from_=FRONTENDS, via=BOTH, request="GET http://backend.default/admin", expect=403),
    Case(from_=FRONTENDS, request="POST http://backend.default/api/data", body="{}", expect=403),
    Case(from_=FRONTENDS, request="POST http://backend.default/api/data", body="{}", headers=TOKEN, expect=200),
    Case(from_=STRANGERS, via=BOTH, request="GET http://backend.default/api/x", expect="reset"),
    Case(from_="frontend", request="tcp backend.default.pod:9000", expect="reset"),
)
EXPLAINED: Final = {
    "200": "allowed; source address at the backend: {source}",
    "403": "refused by the HTTP rules",
    "reset": "refused in the kernel",
}


def demo(
    cni: Annotated[Cni, typer.Option(help="CNI: bridge or ptp.")] = Cni.BRIDGE,
    backend: Annotated[Kernel, typer.Option(help="Kernel backend of the agent.")] = Kernel.AUTO,
    ip_family: Annotated[Families, typer.Option(help="IP families of nodes, pods and Services.")] = Families.FOUR,
    name: Annotated[str, typer.Option(help="Name of the lab.")] = "demo",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the lab running.")] = False,
) -> None:
    """Run two nodes with pods and a CiliumNetworkPolicy, and show the expected and actual result of each request."""
    out, begun = show.console(), time.monotonic()
    with cli.errors_shown(), userns.entered(Lab(name)):
        out.print(f"The policy (deploy/demo/policy.yaml), on CNI [bold]{cni.value}[/]:\n")
        out.print((lifecycle.DEMO / "policy.yaml").read_text(), markup=False, highlight=False)
        manifests = lifecycle.manifests_of([])
        settings = Settings(name=name, cni=cni, backend=backend, ip_family=ip_family)
        with cli.reporting("lab demo") as report:
            lab = lifecycle.up(settings, manifests, report)
        try:
            out.print(f"Two nodes and {len(lab.load().pods)} pods, enforced after {time.monotonic() - begun:.1f} s.\n")
            rows = scenario.check(lab, Scenario(manifests=(), cases=CASES))
            _table(rows, out)
            _flows(lab, out)
        finally:
            if not keep:
                lifecycle.down(lab)
    wrong = sum(bool(row.faults) for row in rows)
    verdict = (
        f"[red]{wrong} of {len(rows)} verdicts are wrong" if wrong else f"[green]All {len(rows)} verdicts are right"
    )
    out.print(f"{verdict}[/] ({time.monotonic() - begun:.1f} s)")
    if keep:
        out.print(f"The lab is running. Try: l7proxy lab exec --name {name} frontend -- curl -i http://backend/admin")
    raise typer.Exit(1 if wrong else 0)


def _table(rows: list[Row], out: Console) -> None:
    table = show.table("FROM", "REQUEST", "TO", "EXPECTED", "RESULT", "")
    for row in rows:
        word = row.seen.word if row.seen else "-"
        explained = EXPLAINED.get(word, "").format(source=row.seen.source if row.seen else "")
        note = f"[red]{'; '.join(row.faults)}[/]" if row.faults else f"[green]✓[/] {explained}"
        who = f"{row.pod} ({'same' if row.same_node else 'other'} node)"
        target = "Service" if row.via == "service" and not row.request.host.endswith(".pod") else row.address
        table.add_row(who, _short(row.case), target, str(row.case.expect), word, note)
    out.print(table)


def _short(case: Case) -> str:
    headers = "".join(f", {name}" for name in case.headers)
    return f"{case.request.replace('http://backend.default', '').replace('backend.default.pod', '')}{headers}"


def _flows(lab: Lab, out: Console) -> None:
    """The flows that the agents recorded, as `l7proxy observe` prints them."""
    for node in lab.load().nodes:
        command = ["observe", "--last", "200", "--run-dir", str(lab.run_directory(node))]
        done = subprocess.run(
            [sys.executable, "-m", "l7proxy.cli.main", *command], capture_output=True, text=True, check=False
        )
        if output := done.stdout + done.stderr:
            out.print(f"\n{node}: l7proxy {' '.join(command)}", highlight=False, soft_wrap=True)
            out.print(output, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    typer.run(demo)


if __name__ == "__main__":
    main()
