"""Every scenario file in combinations of its dimensions: identical verdicts, all as the file expects.

`make test` runs combinations that hold every pair of file, network, backend and address family; `make test-all` all.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from l7proxy.lab import scenario
from l7proxy.lab.settings import Settings
from tests.lab.conftest import ROOT, Cluster
from tests.support.pairwise import cover

pytestmark = pytest.mark.lab

FILES = sorted(Path(__file__).parent.glob("scenarios/*.yaml"))
COMBINATIONS = [
    (file, settings) for file in FILES for settings in scenario.variants(scenario.load(file), f"s{os.getpid()}")
]
PAIRWISE = cover(
    [
        {
            "file": file.stem,
            "network": (settings.cni, settings.bridge_nf_call),
            "backend": settings.backend,
            "family": settings.ip_family,
        }
        for file, settings in COMBINATIONS
    ]
)
PARAMETERS = [
    pytest.param(
        file,
        settings,
        id=f"{file.stem}, {scenario.describe(settings)}, IP {settings.ip_family.value}",
        marks=[pytest.mark.xdist_group(file.stem), *([] if index in PAIRWISE else [pytest.mark.full_product])],
    )
    for index, (file, settings) in enumerate(COMBINATIONS)
]


@pytest.mark.parametrize(("file", "settings"), PARAMETERS)
def test_every_verdict_is_as_written_and_has_its_flows(file: Path, settings: Settings) -> None:
    command = Cluster.argv("run", str(file), "--name", settings.name)
    command += ["--cni", settings.cni.value, "--bridge-nf-call", str(settings.bridge_nf_call)]
    command += ["--backend", settings.backend.value, "--ip-family", settings.ip_family.value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
