"""`l7proxy`: registers all commands and prints errors.

Exit codes: 0 yes or done, 1 no (denied, invalid, not enforced), 2 wrong use, configuration or failure, 130 Ctrl-C.
A command imports its packages when it runs, so that `--help` and the small commands start fast.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Final

import typer

from l7proxy import __version__, compiled, sbin
from l7proxy.cli import observe, policy, service, status, wait
from l7proxy.cli.terminal import complain
from l7proxy.errors import L7ProxyError

HELP: Final = """L7 network policy on any CNI: CiliumNetworkPolicy HTTP rules, with a Hubble flow for every verdict.

\b
l7proxy run --source /etc/l7proxy/manifests      run agent and workers on a node
l7proxy status                                   check that all policies are enforced
l7proxy observe -f --verdict DROPPED             follow refused traffic and the reasons
l7proxy policy validate my-policy.yaml           check a policy before applying it
l7proxy policy trace -f . --from default/web --to default/db --port 80/TCP --http 'GET /x'
l7proxy lab up                                   a test cluster of network namespaces
"""
SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
QUIET_ON_SIGPIPE: Final = frozenset({"observe", "status", "endpoint", "identity", "service", "policy"})
"""Commands that only print: SIGPIPE ends them, as it ends cat. The others have more to do than print."""

app = typer.Typer(
    help=HELP, no_args_is_help=True, rich_markup_mode=None, add_completion=False, context_settings=SETTINGS
)
app.command("run", short_help="Run agent and workers on this node.")(service.run)
app.command("agent", short_help="Run only the agent.")(service.agent)
app.command("workers", short_help="Run only the workers of this node.")(service.workers)
app.command("proxy", short_help="Run only one proxy worker.")(service.proxy)
app.command("cleanup", short_help="Undo what l7proxy has done to this node.")(service.cleanup)
app.command("wait", hidden=True)(wait.wait)
app.command("observe", short_help="Show flows: peers, verdict and reason.")(observe.observe)
app.command("status", short_help="Show whether all policies are enforced.")(status.status)
app.add_typer(status.endpoint, name="endpoint")
app.add_typer(status.identity, name="identity")
app.add_typer(status.services, name="service")
app.add_typer(policy.app, name="policy")


@app.command(
    "lab",
    short_help="Run a test cluster of network namespaces.",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def lab(context: typer.Context) -> None:
    """Run a test cluster of network namespaces on this machine: real packets, no Kubernetes (see `lab --help`)."""
    raise typer.Exit(_lab(context.args))


def _lab(arguments: Sequence[str]) -> int:
    from l7proxy.lab.cli import app as lab_app

    return _call(lab_app, arguments, "l7proxy lab")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"l7proxy {__version__} ({compiled.word()})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Only options that stand before every command."""


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Expected errors are printed in one line."""
    from tproxy_rules.backend import KernelError

    try:
        if arguments[:1] == ["lab"]:  # not parsed here: this parser would drop the `--` of `lab exec POD -- COMMAND`
            return _lab(arguments[1:])
        return _call(app, _prepared(arguments), "l7proxy")
    except (L7ProxyError, KernelError) as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0


def _call(command: typer.Typer, arguments: Sequence[str], name: str) -> int:
    """Typer reports wrong use itself and raises SystemExit; exceptions of commands are passed on."""
    _built(command).main(args=list(arguments), prog_name=name)
    return 0


_built = cache(typer.main.get_command)
"""Takes longer than most commands; the tests call many in one process."""


def _prepared(arguments: Sequence[str]) -> list[str]:
    return observe.prepared(arguments) if _command(arguments) == "observe" else list(arguments)


def _command(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def main() -> None:
    """Entry point of the console script."""
    sbin.reach()
    if _command(sys.argv[1:]) in QUIET_ON_SIGPIPE:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(invoke(sys.argv[1:]))


if __name__ == "__main__":
    main()
