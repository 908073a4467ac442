"""l7proxy: a per-node, L7 policy-enforcing transparent proxy for Kubernetes.

Where things are: DESIGN.md. Imports between the rooms only go down its floors; `make check` proves it.
"""

from l7proxy import compiled

__version__ = "0.1.0"

compiled.use()
