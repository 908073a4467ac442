"""The vocabulary of all other packages: addresses, labels, identities, endpoints, verdicts.

Values only. No module here uses a socket, a clock, a file or the Kubernetes API.
"""
