"""l7proxy: a per-node, L7 policy-enforcing transparent proxy for Kubernetes.

Where things are: DESIGN.md. Imports between packages only go down its layers; `make check` proves it.
"""

from l7proxy import compiled

__version__ = "0.1.0"

compiled.use()
