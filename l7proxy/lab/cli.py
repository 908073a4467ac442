"""`l7proxy lab …`: the command line, a thin layer over `lifecycle`, `execute`, `show` and `scenario`."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from l7proxy.errors import ConfigError, L7ProxyError, SourceError
from l7proxy.lab import execute, lifecycle, logs, scenario, show, state, userns
from l7proxy.lab.manifests import read
from l7proxy.lab.settings import DEFAULT_NAME, Cni, Families, Kernel, Refuse, Settings

app = typer.Typer(
    help="Run test clusters of network namespaces on this machine: real packets and the real agent, no Kubernetes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
_progress = Console(stderr=True)

Name = Annotated[str, typer.Option("--name", help="Name of the lab; several labs can be up at the same time.")]
Files = Annotated[list[Path], typer.Option("-f", "--filename", help="File or directory of manifests. Repeatable.")]


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """Prints expected errors in one line with exit code 2; SIGTERM ends a command as Ctrl-C does, with cleanup."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except L7ProxyError as error:
        _progress.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _existing(name: str) -> Iterator[state.Lab]:
    """A lab in its user namespace."""
    with errors_shown():
        lab = state.Lab(name)
        userns.enter(lab)
        yield lab


@contextlib.contextmanager
def reporting(title: str) -> Iterator[lifecycle.Report]:
    """Shows steps in the terminal's last line; without a terminal, one line each."""
    if not _progress.is_terminal:
        yield lambda text: _progress.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    with _progress.status(title) as line:
        yield lambda text: line.update(f"{title}: {text}")


@app.command()
def up(
    filename: Files = [],  # noqa: B006 - typer's way to say "none"
    name: Name = DEFAULT_NAME,
    cni: Annotated[
        Cni, typer.Option(help="CNI: bridge (cni0, as Flannel) or ptp (routed veths, as Calico).")
    ] = Cni.BRIDGE,
    backend: Annotated[Kernel, typer.Option(help="Kernel backend of the agent.")] = Kernel.AUTO,
    ip_family: Annotated[Families, typer.Option(help="IP families of nodes, pods and Services.")] = Families.FOUR,
    bridge_nf_call: Annotated[
        int, typer.Option(min=0, max=1, help="Value of net.bridge.bridge-nf-call-*; kubeadm sets 1.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Proxy workers per node.")] = 1,
    refuse: Annotated[Refuse, typer.Option(help="How to refuse TCP connections.")] = Refuse.RESET,
    no_agent: Annotated[
        bool, typer.Option("--no-agent", help="Do not run l7proxy on the nodes: nothing is enforced.")
    ] = False,
) -> None:
    """Start a lab and return when all policies are enforced. Without -f it runs the demo's manifests."""
    with errors_shown(), userns.entered(state.Lab(name)), reporting(f"lab {name}") as report:
        settings = Settings(
            name=name,
            cni=cni,
            backend=backend,
            ip_family=ip_family,
            bridge_nf_call=bridge_nf_call,
            workers=workers,
            refuse=refuse,
            agent=not no_agent,
        )
        lab = lifecycle.up(settings, lifecycle.manifests_of(filename), report)
        report("up")
    _warn(lab)


@app.command()
def apply(filename: Files, name: Name = DEFAULT_NAME) -> None:
    """Create or change objects, as `kubectl apply`; return when the change is enforced."""
    with _existing(name) as lab, reporting(f"lab {name}") as report:
        lifecycle.apply(lab, read(filename), report)
    _warn(lab)


@app.command()
def delete(filename: Files, name: Name = DEFAULT_NAME) -> None:
    """Delete the objects in these manifests, as `kubectl delete`; return when the change is enforced."""
    with _existing(name) as lab, reporting(f"lab {name}") as report:
        lifecycle.delete(lab, [manifest.key for manifest in read(filename)], report)


@app.command(name="exec")
def exec_(
    target: Annotated[str, typer.Argument(metavar="[NS/]POD|node/NODE", help="Pod or node.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="Command and arguments.")],
    name: Name = DEFAULT_NAME,
) -> None:
    """Run a command in a pod or on a node; exit with its exit code."""
    with _existing(name) as lab:
        raise typer.Exit(execute.execute(lab, target, command))


@app.command()
def status(
    name: Name = DEFAULT_NAME,
    output: Annotated[str, typer.Option("-o", "--output", help="Output format: table or json.")] = "table",
) -> None:
    """Show nodes, pods and enforcement. Exit code 1 if a node does not enforce all policies."""
    with _existing(name) as lab:
        if output not in {"table", "json"}:
            raise ConfigError(f"-o {output}: must be table or json")
        resources = show.gather(lab)
        if output == "json":
            print(json.dumps(resources, indent=2))
        else:
            show.render(resources, show.console())
        if not resources["up"] or any(node["agent"] and node["agent"]["waiting"] for node in resources["nodes"]):
            raise typer.Exit(1)


@app.command(name="logs")
def logs_(
    target: Annotated[
        str | None, typer.Argument(metavar="[[NS/]POD|node/NODE]", help="Pod or node [default: all].")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing new lines.")] = False,
    name: Name = DEFAULT_NAME,
) -> None:
    """Print the logs of pods and agents."""
    with _existing(name) as lab:
        for line in logs.lines(logs.directories(lab, target), follow=follow):
            print(line, flush=follow)


@app.command()
def run(
    file: Annotated[
        Path, typer.Argument(metavar="SCENARIO.yaml", help="Scenario file: manifests, dimensions and cases.")
    ],
    cni: Annotated[list[Cni], typer.Option(help="Only these CNIs. Repeatable.")] = [],  # noqa: B006
    bridge_nf_call: Annotated[list[int], typer.Option(min=0, max=1, help="Only these values. Repeatable.")] = [],  # noqa: B006
    backend: Annotated[list[Kernel], typer.Option(help="Only these backends. Repeatable.")] = [],  # noqa: B006
    ip_family: Annotated[list[Families], typer.Option(help="Only these IP families. Repeatable.")] = [],  # noqa: B006
    name: Name = "run",
) -> None:
    """Start a lab for each combination, check every case and remove the lab. Exit code 1 if a case fails."""
    with errors_shown(), userns.entered(state.Lab(name)):
        only: scenario.Only = {"cni": cni, "bridge_nf_call": bridge_nf_call, "backend": backend, "ip_family": ip_family}
        ok = scenario.run(scenario.load(file), only, name, show.console(), _progress)
        raise typer.Exit(0 if ok else 1)


@app.command()
def down(
    name: Name = DEFAULT_NAME,
    every: Annotated[bool, typer.Option("--all", help="Remove every lab of this user.")] = False,
) -> None:
    """Remove a lab: processes, namespaces and files. It is not an error if the lab does not exist."""
    if every:
        codes = [_again("down", "--name", each) for each in state.names()]
        raise typer.Exit(max(codes, default=0))
    with _existing(name) as lab, reporting("lab down") as report:
        lifecycle.down(lab, report)
        userns.leave(lab)


def _again(*arguments: str) -> int:
    """Run another lab command in its own process: each lab may be in another user namespace."""
    return subprocess.run([sys.executable, "-m", "l7proxy.lab", *arguments], check=False).returncode


def _warn(lab: state.Lab) -> None:
    """Print at once what the agents could not use of the manifests."""
    resources = show.gather(lab)
    seen: set[str] = set()
    for node in resources["nodes"]:
        for problem in (node["agent"] or {}).get("problems") or []:
            if (text := str(SourceError(**problem))) not in seen:
                seen.add(text)
                _progress.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    app(prog_name="l7proxy lab")


if __name__ == "__main__":
    main()
