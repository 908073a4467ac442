"""The words of the nft language that both of our tables are written with. Pure text, no decisions."""

from __future__ import annotations

from tproxy_rules.desired import Settings
from tproxy_rules.marks import LOG_QUEUE, LOG_SNAPLEN, Told, Way, log_prefix


def absent(family: str, name: str) -> str:
    """No such table."""
    return f"table {family} {name}\ndelete table {family} {name}\n"


def identity(number: int) -> str:
    """A 32-bit number as the major:minor, in hex, of `meta priority`."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def mark(bits: int) -> str:
    """Sets them, and leaves the others as they are."""
    return f"meta mark set meta mark | {bits:#010x}"


def log(settings: Settings, told: Told, way: Way, endpoint: int) -> str:
    """A log statement under two rate limits; what is over them is judged the same, only not told.

    No endpoint may take more than a tenth of the events, so that a pod that floods cannot hide what others do.
    """
    share = max(settings.log_rate // 10, 1)
    refused = told not in (Told.ALLOW, Told.STEER)
    return (
        f"limit rate {share}/second burst {share} packets limit name {'refused' if refused else 'passed'} "
        f'log prefix "{log_prefix(told, way, endpoint)}" group {settings.nflog_group} '
        f"snaplen {LOG_SNAPLEN} queue-threshold {LOG_QUEUE}"
    )


def limits(settings: Settings) -> str:
    """The node-wide halves of `log`: refusals and passes do not take each other's place."""
    rate = settings.log_rate
    return "".join(
        f"\tlimit {name} {{\n\t\trate {rate}/second burst {rate} packets\n\t}}\n" for name in ("passed", "refused")
    )
