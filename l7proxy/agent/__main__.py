"""`python -P -m l7proxy.agent SETTINGS`: the agent. SETTINGS is one line of JSON (`Settings.dump`)."""

from __future__ import annotations

import sys

from l7proxy import log_output
from l7proxy.agent.run import run_agent
from l7proxy.setting_definitions import Settings, parse

if __name__ == "__main__":
    settings = parse(sys.argv[1], Settings)
    log_output.start(settings.log_level, settings.log_format, settings.node)
    sys.exit(run_agent(settings))
