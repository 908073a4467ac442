"""The shared page that makes a stopped worker apply the required policy snapshot before it serves again."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.link.fence import Fence, Page, stamp
from l7proxy.link.messages import PolicySnapshot


def snapshot(page: Page, revision: int) -> PolicySnapshot:
    return PolicySnapshot(revision, (), {}, epoch=page.epoch)


def test_it_is_up_only_while_a_required_snapshot_is_not_applied(tmp_path: Path) -> None:
    page, fence = Page(tmp_path / "fence"), Fence.of(tmp_path / "fence")
    first = snapshot(page, 1)
    page.publish(first)
    assert fence.behind() and not fence.up()
    page.require(first)
    assert fence.up() and not fence.outdates(stamp(first)) and fence.outdates(stamp(first) - 1)
    fence.applied = stamp(first)
    assert not fence.up() and not fence.behind()


def test_what_is_required_is_never_less_than_it_was(tmp_path: Path) -> None:
    page, fence = Page(tmp_path / "fence"), Fence.of(tmp_path / "fence")
    page.require(snapshot(page, 5))
    page.require(snapshot(page, 4))
    fence.applied = stamp(snapshot(page, 4))
    assert fence.up()


def test_snapshots_of_the_next_agent_come_after_all_of_the_last_one(tmp_path: Path) -> None:
    first, fence = Page(tmp_path / "fence"), Fence.of(tmp_path / "fence")
    last = snapshot(first, 4_000_000_000)
    first.require(last)
    fence.applied = stamp(last)
    second = Page(tmp_path / "fence")
    assert not fence.up()  # while an agent is away, workers go on
    second.require(snapshot(second, 1))
    assert fence.up()


def test_a_page_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fence: cannot be created or mapped"):
        Fence.of(tmp_path / "nowhere" / "fence")
