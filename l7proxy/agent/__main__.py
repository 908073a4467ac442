"""`python -P -m l7proxy.agent SETTINGS`: the agent. SETTINGS is one line of JSON (`Settings.dump`)."""

from __future__ import annotations

import sys

from l7proxy.agent.run import run_agent
from l7proxy.process import start_log
from l7proxy.setting_definitions import Settings, parse

if __name__ == "__main__":
    settings = parse(sys.argv[1], Settings)
    start_log(settings.log_level)
    sys.exit(run_agent(settings))
