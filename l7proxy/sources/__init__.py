"""Reads resources from a source: the Kubernetes API server, or manifest files.

source             the contract of a source: `watch` yields changes, `health` is what status shows
decode, objects    one object as YAML or the Kubernetes API gives it, into a resource; fields: typed access to fields
last_good          the last good version of what cannot be decoded
files              the source that watches a directory of manifests
kubernetes         the source that watches the API server

Not here: relations between resources (cluster), parsing of policies (policy.lang).
"""
