"""The randomised attacker for a few seconds, from one seed: nothing forbidden arrives, nothing allowed is refused."""

from __future__ import annotations

from tests.attacks.labs import AttackLab
from tests.attacks.monkey import Monkey


def test_no_law_is_broken(lab: AttackLab) -> None:
    monkey = Monkey(lab, 20_261_128)
    monkey.run(8)
    assert not monkey.faults, "\n".join(monkey.faults)
    assert monkey.step > 2, "too few steps to have tried anything"
