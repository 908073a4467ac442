"""Leaves out tests of a real Kubernetes, unless they are named: they need root, and minutes for the first cluster.

Groups lab tests for `pytest -n 2 --dist loadgroup`: tests that share a lab run in one process.

Attack tests are grouped by their combination of CNI, backend and families, all other tests by module.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell starts background jobs with SIGINT ignored, and programs that tests start would inherit that."""

LABS = (Path(__file__).with_name("lab"), Path(__file__).with_name("attacks"))
KUBE = Path(__file__).with_name("kube")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """True leaves a path out; None leaves the decision to others."""
    named = (Path(config.invocation_params.dir, argument.partition("::")[0]) for argument in config.args)
    return True if collection_path == KUBE and not any(KUBE in (path, *path.parents) for path in named) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent in LABS:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return str(parameters["lab"]) if item.path.parent.name == "attacks" and "lab" in parameters else item.path.stem
