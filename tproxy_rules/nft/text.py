"""The words of the nft language that both of our tables are written with. Pure text, no decisions."""

from __future__ import annotations

from ipaddress import ip_address

from tproxy_rules.desired import Settings
from tproxy_rules.marks import LOG_QUEUE, LOG_SNAPLEN, PASSED, UNVERIFIED, LogDirection, LogEvent, log_code, log_prefix


def absent(family: str, name: str) -> str:
    """No such table."""
    return f"table {family} {name}\ndelete table {family} {name}\n"


def identity(number: int) -> str:
    """A 32-bit number as the major:minor, in hex, of `meta priority`."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def as_bits(address: str) -> str:
    """An address as what raw payload (`@th,…`) is compared with."""
    return f"0x{ip_address(address).packed.hex()}"


def mark(bits: int) -> str:
    """Sets them, and leaves the others as they are."""
    return f"meta mark set meta mark | {bits:#010x}"


def log(settings: Settings, told: LogEvent, way: LogDirection, endpoint: int) -> str:
    """Two rules, a line each: the first asks a chain of `nft/limits` whether the sender may be told of once more.

    That chain leaves the code in `meta priority`, or clears it and counts. A condition may be put before the first.
    """
    limit = "passed" if told in PASSED else "port" if told in UNVERIFIED else "refused"
    code = identity(log_code(told, way, endpoint))
    return (
        f"meta priority set {code} jump limit_{limit}\n"
        f'meta priority {code} log prefix "{log_prefix(told, way, endpoint)}" group {settings.nflog_group} '
        f"snaplen {LOG_SNAPLEN} queue-threshold {LOG_QUEUE}"
    )
