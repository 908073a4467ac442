"""Pieces of nft syntax that both tables use. Pure text, no decisions."""

from __future__ import annotations

from ipaddress import ip_address

from tproxy_rules.desired import Settings
from tproxy_rules.marks import LOG_QUEUE, LOG_SNAPLEN, PASSED, UNVERIFIED, LogDirection, LogEvent, log_code, log_prefix


def absent(family: str, name: str) -> str:
    """Delete the table, whether it exists or not."""
    return f"table {family} {name}\ndelete table {family} {name}\n"


def identity(number: int) -> str:
    """A 32-bit number as hexadecimal major:minor, for `meta priority`."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def as_bits(address: str) -> str:
    """An address as a number, for comparison with raw payload (`@th,…`)."""
    return f"0x{ip_address(address).packed.hex()}"


def mark(bits: int) -> str:
    """Set these mark bits, keep the others."""
    return f"meta mark set meta mark | {bits:#010x}"


def log(settings: Settings, kind: LogEvent, way: LogDirection, endpoint: int) -> str:
    """Two rules, one per line: a jump to a limit chain of `nft/limits`, and the log rule, if the limit allows it.

    That chain keeps the code in `meta priority`, or clears it and counts. A condition may precede the first rule.
    """
    limit = "passed" if kind in PASSED else "port" if kind in UNVERIFIED else "refused"
    code = identity(log_code(kind, way, endpoint))
    return (
        f"meta priority set {code} jump limit_{limit}\n"
        f'meta priority {code} log prefix "{log_prefix(kind, way, endpoint)}" group {settings.nflog_group} '
        f"snaplen {LOG_SNAPLEN} queue-threshold {LOG_QUEUE}"
    )
