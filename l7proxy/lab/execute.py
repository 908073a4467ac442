"""`lab exec`: replaces this process with a command in a pod or node, which gets the terminal, signals and exit code."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from l7proxy.errors import ConfigError
from l7proxy.lab import netns
from l7proxy.lab.state import Box, Lab, State

NODE_PREFIX = "node/"
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes of a command that is not found, or not executable (POSIX, sh)."""


def find(state: State, target: str) -> tuple[str, Box]:
    """`NS/POD`, `POD` (of `default`, or the only one of that name), or `node/NODE`."""
    if target.startswith(NODE_PREFIX):
        name = target.removeprefix(NODE_PREFIX)
        if name not in state.nodes:
            raise ConfigError(f"node {name!r} not found (nodes: {', '.join(state.nodes)})")
        return name, state.nodes[name]
    for name in (target, f"default/{target}"):
        if name in state.pods:
            return name, state.pods[name]
    named = [name for name in state.pods if name.partition("/")[2] == target]
    if len(named) != 1:
        if named:
            raise ConfigError(f"{target!r} is in several namespaces: {', '.join(named)}")
        raise ConfigError(f"pod {target!r} not found (pods: {', '.join(state.pods) or 'none'})")
    return named[0], state.pods[named[0]]


def execute(lab: Lab, target: str, argv: Sequence[str]) -> int:
    """Replaces this process. Returns only when the command cannot be run."""
    name, box = find(lab.load(), target)
    if box.process is None or not box.process.alive:
        raise ConfigError(f"{name} is not running (see `l7proxy lab status`)")
    for kind, flag in (("net", netns.CLONE_NEWNET), ("uts", netns.CLONE_NEWUTS), ("mnt", netns.CLONE_NEWNS)):
        netns.enter(f"/proc/{box.process.pid}/ns/{kind}", flag)
    if shutil.which(argv[0]) is None:
        print(f"{argv[0]}: not found", file=sys.stderr)
        return NOT_FOUND
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        return NOT_EXECUTABLE
