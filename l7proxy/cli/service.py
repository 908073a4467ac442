"""Commands that run on a node: agent and workers, the agent alone, the workers alone, one worker, and cleanup."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l7proxy import log_output
from l7proxy.cli.flags import flag, with_flags
from l7proxy.setting_definitions import CLEANUP, DEFINITIONS, WORKERS, Definition, Settings

if TYPE_CHECKING:
    from l7proxy.agent.supervise import Child
    from l7proxy.settings.origin import Origin

Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="L7PROXY_CONFIG", help="YAML file of settings; flags override it.", metavar="FILE"),
]


def _flags(used_by: str) -> Iterator[inspect.Parameter]:
    """A flag for each setting that the command uses. Values are read in `settings.read`, as those of variables are."""
    for one in DEFINITIONS.values():
        if used_by in one.used_by:
            yield flag(one.key, bool if one.kind is bool else str, _option(one))


def _option(one: Definition) -> Any:
    names = f"{one.flag}/--no-{one.key}" if one.kind is bool else one.flag
    choices = f" One of {', '.join(filter(None, one.choices))}." if one.choices else ""
    text = f"{one.about.help}{choices} [default: {one.default or 'none'}]"
    return typer.Option(names, help=text, metavar=_metavar(one), show_default=False)


def _metavar(one: Definition) -> str | None:
    if one.kind is bool:
        return None
    numbers = one.about.unit.upper() or "N"
    return "LIST" if one.item else {int: numbers, float: numbers, Path: "PATH"}.get(one.kind, "TEXT")


def _settings(config: Path | None, chosen: Mapping[str, Any], used_by: str = "agent") -> Settings:
    return _started(config, chosen, used_by)[0]


def _started(config: Path | None, chosen: Mapping[str, Any], used_by: str = "agent") -> tuple[Settings, Origin]:
    """The settings, and where to read them again; from now on it is logged as they say."""
    from l7proxy.settings.origin import Origin

    flags = {name: value for name, value in chosen.items() if value is not None}
    origin = Origin(file=str(config.absolute()) if config is not None else None, flags=flags, used_by=used_by)
    settings = origin.load()
    log_output.start(settings.log_level, settings.log_format, settings.node)
    return settings, origin


def _run(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Run the agent and its workers on this node; restart them when they exit.

    The kernel rules stay in place when it stops: L4 rules remain enforced, ports with L7 rules are refused.
    `l7proxy cleanup` removes them.

    Every flag may be given as an environment variable: --proxy-port as L7PROXY_PROXY_PORT. A flag wins over the
    variable, the variable over the file.

    \b
    l7proxy run --source /etc/l7proxy/manifests
    l7proxy run --config /etc/l7proxy/config.yaml --flow-log /var/log/l7proxy/flows.jsonl
    """
    from l7proxy.agent.supervise import run_all

    raise typer.Exit(run_all(*_started(config, chosen)))


def _agent(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Run only the agent: it reads manifests, programs the kernel and the workers, and collects flows."""
    from l7proxy.agent import supervise

    _become(supervise.agent(*_started(config, chosen)))


def _workers(
    *,
    chosen: Mapping[str, Any],
    config: Config = None,
    ready_file: Annotated[
        Path | None,
        typer.Option("--ready-file", help="File that exists while every worker serves connections.", metavar="PATH"),
    ] = None,
) -> None:
    """Run only the workers of this node; restart them when they exit.

    They serve redirected connections with the policy of the agent, which runs elsewhere on the node: `l7proxy agent`.
    New workers may start while the old ones still drain: both listen, and no connection is refused. SIGTERM drains.
    """
    from l7proxy.agent.supervise import run_workers

    raise typer.Exit(run_workers(*_started(config, chosen, WORKERS), ready_file))


def _proxy(
    *,
    chosen: Mapping[str, Any],
    config: Config = None,
    worker: Annotated[int, typer.Option(min=0, help="Index of this worker on its node.")] = 0,
) -> None:
    """Run only one proxy worker: it serves redirected connections with the policy of the agent.

    Without an agent the worker keeps enforcing the last policy it received; before the first one it refuses
    everything.
    """
    from l7proxy.agent import supervise

    _become(supervise.lone_worker(_settings(config, chosen, "worker"), worker))


def _become(program: Child) -> None:
    """Replace this process: its modules (flags, YAML) are of no use to the program."""
    os.execv(program.argv[0], program.argv)


def _cleanup(*, chosen: Mapping[str, Any], config: Config = None) -> None:
    """Undo what l7proxy has done to this node, and say what was undone. Safe to repeat.

    Rules, sets, tables and routes leave the kernel; sysctls get the values that they had before; the saved objects
    of the API server are deleted. Flow logs, and the sockets of processes that still run, stay.

    Run it after `l7proxy run` has stopped. Nothing is enforced afterwards: all traffic is allowed.
    """
    from l7proxy.agent.cleanup import cleanup as remove

    for line in remove(_settings(config, chosen, CLEANUP)):
        print(line, flush=True)


run = with_flags(_run, "chosen", _flags("agent"))
agent = with_flags(_agent, "chosen", _flags("agent"))
workers = with_flags(_workers, "chosen", _flags(WORKERS))
proxy = with_flags(_proxy, "chosen", _flags("worker"))
cleanup = with_flags(_cleanup, "chosen", _flags(CLEANUP))
