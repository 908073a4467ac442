"""Every scenario file in every combination of its dimensions: identical verdicts, all as the file expects."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from l7proxy.lab import scenario
from l7proxy.lab.settings import Settings
from tests.lab.conftest import ROOT, Cluster

pytestmark = pytest.mark.lab

FILES = sorted(Path(__file__).parent.glob("scenarios/*.yaml"))
COMBINATIONS = [
    pytest.param(file, settings, id=f"{file.stem}, {scenario.describe(settings)}, IP {settings.ip_family.value}")
    for file in FILES
    for settings in scenario.variants(scenario.load(file), scenario.Only(), f"s{os.getpid()}")
]


@pytest.mark.parametrize(("file", "settings"), COMBINATIONS)
def test_every_verdict_is_as_written_and_has_its_flows(file: Path, settings: Settings) -> None:
    command = Cluster.argv("run", str(file), "--name", settings.name)
    command += ["--cni", settings.cni.value, "--bridge-nf-call", str(settings.bridge_nf_call)]
    command += ["--backend", settings.backend.value, "--ip-family", settings.ip_family.value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
