from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from l7proxy.sources.kubernetes.credentials import Access
from tests.support.kube_api import KubeApi


@pytest.fixture
def server() -> Iterator[KubeApi]:
    api = KubeApi()
    yield api
    api.close()


@pytest.fixture
def access(server: KubeApi, tmp_path: Path) -> Access:
    return Access(str(server.kubeconfig(tmp_path)))
