"""`python -P -m l7proxy.agent SETTINGS [ORIGIN]`: the agent. SETTINGS is one line of JSON (`Settings.dump`).

ORIGIN (`Origin.dump`): where to read them again when they change.
"""

from __future__ import annotations

import sys

from l7proxy import log_output
from l7proxy.agent.run import run_agent
from l7proxy.setting_definitions import Settings, parse
from l7proxy.settings.origin import Origin

if __name__ == "__main__":
    settings = parse(sys.argv[1], Settings)
    log_output.start(settings.log_level, settings.log_format, settings.node)
    sys.exit(run_agent(settings, Origin.parse(sys.argv[2]) if len(sys.argv) > 2 else None))
