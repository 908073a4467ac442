"""`make test-kube-quick`: the part of tests/kube that `.ci/run` runs: image, cluster and tests, each within a limit.

A machine that cannot run a cluster is an error that says why, before anything is built: leaving these tests out must be
asked for, by L7PROXY_SKIP_KUBE=1. Each step has a limit of time. Whatever ends the stage (a failure, a limit, Ctrl-C,
SIGTERM, SIGHUP), the cluster is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from deploy.cluster import cluster as clusters
from deploy.cluster import facts, parts
from deploy.cluster.plan import Cluster
from l7proxy.errors import ConfigError
from tests.kube import logs
from tests.kube.handle import ROOT, Handle, name_of_this_checkout

SKIP: Final = "L7PROXY_SKIP_KUBE"
TESTS: Final = ("tests/kube/test_helm.py", "tests/kube/test_smoke.py")
LOCK: Final = ROOT / "build" / "test-kube-quick.lock"
GRACE: Final = 60.0
"""Seconds that a step has to clean up after SIGTERM."""


@dataclass(frozen=True, slots=True)
class Step:
    what: str
    command: Sequence[str]
    limit: float
    """Seconds."""
    environment: Mapping[str, str] = field(default_factory=dict)


class StepFailedError(Exception):
    pass


def before(cluster: Cluster) -> list[Step]:
    """What makes a cluster: each step shows its own progress."""
    tool = [sys.executable, "-m", "deploy.cluster", "--name", cluster.name]
    return [
        Step("the image of l7proxy", ["make", "--no-print-directory", "image"], 1200),
        Step("the programs of a cluster", [*tool, "parts"], 3000),
        Step("a cluster", [*tool, "up", "--cni", cluster.cni, "--proxy", cluster.proxy], 600),
    ]


def tests(cluster: Cluster, arguments: Sequence[str]) -> Step:
    command = [sys.executable, "-m", "pytest", "-v", "--no-header", "--durations=5", *(arguments or TESTS)]
    environment = {"CLUSTER_NAME": cluster.name, "CNI": cluster.cni, "PROXY": cluster.proxy}
    return Step("the tests", command, 1200, environment)


def run(step: Step, grace: float = GRACE) -> float:
    """Run a step, which writes to our own output. Its seconds. StepFailedError if it fails, or takes too long."""
    print(f"== {step.what} (limit: {step.limit / 60:.0f} min)", flush=True)
    begun = time.monotonic()
    process = subprocess.Popen(
        step.command, cwd=ROOT, env={**os.environ, **step.environment}, start_new_session=True
    )  # a session of its own: it gets signals from us alone
    try:
        code = process.wait(step.limit)
    except subprocess.TimeoutExpired as error:
        raise StepFailedError(f"{step.what}: not done within {step.limit / 60:.1f} min") from error
    finally:
        _end(process, grace)
    if code:
        raise StepFailedError(f"{step.what}: exit code {code}")
    return time.monotonic() - begun


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to all of the session that is left, after `grace` seconds SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def removed_at_the_end(cluster: Cluster) -> Iterator[None]:
    """What a killed run has left is removed, too; after a failure, the logs of all programs are kept."""
    clusters.down(cluster.name)
    try:
        yield
    except BaseException:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second signal must not leave half of it
        if clusters.running(cluster.name) or cluster.data.exists():
            print(f"Logs of the cluster: {logs.keep(Handle(cluster, parts.ready()))}", flush=True)
        raise
    finally:
        clusters.down(cluster.name)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The cluster is named by the checkout: two stages in one would remove each other's."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError("make test-kube-quick runs already in this checkout: wait for its end") from error
        yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def stage(cluster: Cluster, arguments: Sequence[str]) -> None:
    facts.require(cluster)
    with alone(), removed_at_the_end(cluster):
        taken = {step.what: run(step) for step in [*before(cluster), tests(cluster, arguments)]}
    print(f"tests/kube: {', '.join(f'{what} {seconds:.0f} s' for what, seconds in taken.items())}", flush=True)


def main(arguments: Sequence[str]) -> int:
    if os.environ.get(SKIP, "0") not in ("", "0"):
        print(f"tests/kube: left out, since {SKIP} is set")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        stage(Cluster(name_of_this_checkout("quick")), arguments)
    except (ConfigError, StepFailedError, OSError) as error:
        print(f"error: {error}\n\ntests/kube did not pass. {SKIP}=1 leaves them out.", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0]
        print(f"\ninterrupted by {signal.Signals(number).name}; the cluster is removed", file=sys.stderr)
        return 128 + int(number)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
