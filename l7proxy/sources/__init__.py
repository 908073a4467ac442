"""Reads resources from a source: at present from manifest files.

source             the contract of a source: `watch` yields changes, `health` is what status shows
decode, objects    one object as YAML or the Kubernetes API gives it, into a resource; fields: typed access to fields
last_good          the last good version of what cannot be decoded
files              the source that watches a directory of manifests

Not here: relations between resources (cluster), parsing of policies (policy.lang).
"""
