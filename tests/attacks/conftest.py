"""One lab per combination, shared by all its tests. `pytest tests/attacks -k ptp-iptables-6` runs one combination.

    @pytest.mark.where(cni="bridge", family=6)     only on such combinations; the skip message gives the reason
    @pytest.mark.once                              on one combination: the attack does not depend on it

A test leaves the lab as it found it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.attacks.labs import COMBINATIONS, PAIRWISE, AttackLab, Combination
from tests.lab.conftest import missing, unable


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(c, id=str(c), marks=[pytest.mark.lab, *([] if c in PAIRWISE else [pytest.mark.full_product])])
        for c in COMBINATIONS
    ],
)
def lab(request: pytest.FixtureRequest) -> Iterator[AttackLab]:
    """A lab with the pods of cluster.yaml."""
    if reason := missing() or ("" if os.geteuid() == 0 else "attacks send raw frames from pods: run as root"):
        unable(reason)
    made = AttackLab(f"attack{os.getpid()}", request.param)
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def family(request: pytest.FixtureRequest) -> int:
    """4 or 6: a test that uses it runs once for each family of its lab."""
    return int(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", [4, 6], ids=["IPv4", "IPv6"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unfit = [item for item in items if not _fits(item)]
    config.hook.pytest_deselected(items=unfit)
    items[:] = [item for item in items if _fits(item)]


def _fits(item: pytest.Item) -> bool:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    combination = parameters.get("lab")
    if not isinstance(combination, Combination):
        return True
    if item.get_closest_marker("once") and combination != COMBINATIONS[0]:
        return False
    wanted = [mark.kwargs for mark in item.iter_markers("where")]
    if "family" in parameters:
        wanted.append({"family": parameters["family"]})
    return all(combination.fits(**fields) for fields in wanted)
