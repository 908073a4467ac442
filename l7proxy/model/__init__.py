"""The words everything else speaks: addresses, labels, identities, endpoints, verdicts.

Values only. No module here knows a socket, a clock, a file or Kubernetes' API.
"""
