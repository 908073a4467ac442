"""The kernel's tools are found although a user's PATH on Debian lacks sbin."""

from __future__ import annotations

import pytest

from l7proxy.sbin import reach


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/usr/bin:/bin", "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ("/mine:/usr/sbin:/usr/bin", "/mine:/usr/sbin:/usr/bin:/usr/local/sbin:/sbin"),
        ("/usr/local/sbin:/usr/sbin:/sbin:/bin", "/usr/local/sbin:/usr/sbin:/sbin:/bin"),
    ],
)
def test_sbin_comes_last_and_once(before: str, after: str) -> None:
    environment = {"PATH": before}
    reach(environment)
    reach(environment)
    assert environment["PATH"] == after
