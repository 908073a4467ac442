"""`python -P -m l7proxy.proxy SETTINGS INDEX [READY]`: one worker. SETTINGS: one line of JSON (`WorkerSettings.dump`).

READY: an inherited descriptor, to which a byte is written once the worker serves connections.
"""

from __future__ import annotations

import sys

from l7proxy.errors import ConfigError
from l7proxy.process import exit_code, start_log
from l7proxy.proxy.worker import run_worker
from l7proxy.setting_definitions import WorkerSettings, parse

if __name__ == "__main__":
    settings = parse(sys.argv[1], WorkerSettings)
    start_log(settings.log_level)
    index, *ready = map(int, sys.argv[2:])
    sys.exit(exit_code(lambda: run_worker(settings, index, ready=ready[0] if ready else None), ConfigError))
