"""`python -P -m l7proxy.proxy SETTINGS INDEX [CHANGES [READY]]`: one worker.

SETTINGS: one line of JSON (`WorkerSettings.dump`). CHANGES: a descriptor from which it reads further such lines, each
of them the settings from then on. READY: an inherited descriptor, to which a byte is written once the worker serves
connections.
"""

from __future__ import annotations

import sys

from l7proxy import log_output
from l7proxy.errors import ConfigError
from l7proxy.process import exit_code
from l7proxy.proxy.worker import run_worker
from l7proxy.setting_definitions import WorkerSettings, parse

if __name__ == "__main__":
    settings = parse(sys.argv[1], WorkerSettings)
    log_output.start(settings.log_level, settings.log_format, settings.node)
    index, changes, ready, *_ = (*map(int, sys.argv[2:]), None, None)
    sys.exit(exit_code(lambda: run_worker(settings, index or 0, changes=changes, ready=ready), ConfigError))
