"""Where settings came from: enough to read them again, in this process or in the one that it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec

from l7proxy.setting_definitions import Settings


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration file, the flags that win over it, and the command whose variables count."""

    file: str | None = None
    flags: Mapping[str, str | bool] = {}
    used_by: str = "agent"

    @property
    def path(self) -> Path | None:
        return Path(self.file) if self.file is not None else None

    def load(self) -> Settings:
        """ConfigError names where the wrong value is written."""
        from l7proxy.settings.read import load  # it imports YAML and more: not needed until the file is read

        return load(self.path, self.flags, used_by=self.used_by)

    def dump(self) -> str:
        """One line of JSON that `parse` reads."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def parse(cls, line: str) -> Self:
        """msgspec.ValidationError when it is not what `dump` wrote."""
        return msgspec.json.decode(line, type=cls)
