"""Marks the modules that `make check` leaves to `make test`: property and differential tests with many examples, and
tests that start processes or wait. They take more than half of the time of the unit tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOW = frozenset(
    HERE / name
    for name in (
        "agent/test_no_hysteresis.py",
        "agent/test_run.py",
        "agent/test_supervise.py",
        "cli/test_program.py",
        "flows/test_template.py",
        "gate/test_http1_corpus.py",
        "gate/test_http1_laws.py",
        "gate/test_http2_incidents.py",
        "gate/test_http2_laws.py",
        "policy/test_cilium_oracle.py",
        "policy/test_policy_properties.py",
        "policy/test_tiers_mutations.py",
        "proxy/test_forgotten_sessions.py",
        "proxy/test_gathering.py",
        "proxy/test_http2_sessions.py",
        "proxy/test_pressure.py",
        "proxy/test_random_ends.py",
        "proxy/test_splice.py",
        "proxy/test_worker.py",
        "wire/test_corpus.py",
        "wire/test_differential.py",
        "wire/test_http2_fields.py",
    )
)


def pytest_configure() -> None:
    if missing := sorted(str(path) for path in SLOW if not path.exists()):
        raise pytest.UsageError(f"tests/unit/conftest.py: SLOW names missing files: {', '.join(missing)}")


@pytest.hookimpl(tryfirst=True)  # before `-m` is evaluated
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in SLOW:
            item.add_marker(pytest.mark.slow)
