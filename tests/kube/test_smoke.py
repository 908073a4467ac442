"""deploy/smoke on a real cluster with l7proxy: every verdict of its table is right."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cluster import images
from tests.kube.handle import Handle

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "build" / "l7proxy.oci.tar"
NAMESPACE = "kube-system"
RELEASE = "l7proxy"


def smoke(cluster: Handle, *options: str) -> tuple[int, str]:
    """The exit code and the output of run.sh."""
    command = ["sh", str(ROOT / "deploy/smoke/run.sh"), "--image", images.NETSHOOT, *options]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def installed(cluster: Handle) -> Iterator[None]:
    """The chart of this tree with the image of `make image`; a release that is there already is used, and stays."""
    if RELEASE in cluster.helm("list", "-n", NAMESPACE, "-q").split():
        yield
        return
    assert IMAGE.exists(), f"{IMAGE} does not exist: make image"
    cluster.load(IMAGE)
    chart = str(ROOT / "deploy/helm/l7proxy")
    cluster.helm("install", RELEASE, chart, "-n", NAMESPACE, "--set=image.tag=dev", "--wait", "--timeout=2m")
    yield
    cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout=2m")


def test_all_verdicts_are_right(cluster: Handle, installed: None) -> None:
    code, output = smoke(cluster)
    assert code == 0, output
    assert "verdicts are right" in output
    assert "l7proxy-smoke" not in cluster.kubectl("get", "namespaces", "-o", "name")
