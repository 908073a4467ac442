"""What `make check` leaves to `make test`: the modules of SLOW (property and differential tests with many examples, and
tests that start processes or wait), which take more than half of the time of the unit tests, and three quarters of the
examples of the other property tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

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
        "gate/test_http2_liveness.py",
        "policy/test_cilium_oracle.py",
        "policy/test_policy_oracle.py",
        "policy/test_policy_properties.py",
        "policy/test_tiers_mutations.py",
        "proxy/test_forgotten_sessions.py",
        "proxy/test_gathering.py",
        "proxy/test_http2_sessions.py",
        "proxy/test_pressure.py",
        "proxy/test_random_ends.py",
        "proxy/test_splice.py",
        "proxy/test_transform.py",
        "proxy/test_worker.py",
        "wire/test_corpus.py",
        "wire/test_differential.py",
        "wire/test_http2_fields.py",
    )
)


# No deadline: a busy machine would fail it. More examples are set by the tests that need them.
settings.register_profile("full", deadline=None)
settings.register_profile("check", deadline=None, max_examples=25)
settings.load_profile("full")


def pytest_configure() -> None:
    if missing := sorted(str(path) for path in SLOW if not path.exists()):
        raise pytest.UsageError(f"tests/unit/conftest.py: SLOW names missing files: {', '.join(missing)}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import slow modules that `-m` leaves out: each process of pytest-xdist would."""
    return True if collection_path in SLOW and "not slow" in config.option.markexpr else None


@pytest.hookimpl(tryfirst=True)  # before `-m` is evaluated
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in SLOW:
            item.add_marker(pytest.mark.slow)
