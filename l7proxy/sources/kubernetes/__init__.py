"""Reads resources from a Kubernetes API server, and holds the connection that other parts of the agent use, too.

credentials   where the API server is, and as whom we ask: the pod's ServiceAccount, or a kubeconfig
connection    authenticated requests and streams; answers are raw bytes
kinds         the table of what is read; which of it a cluster may lack
trim          the few fields of an object that are decoded
transfer      lists and watches: bytes to events
reflector     keeps one collection equal to what the server has
collection    the objects of one kind, decoded; what changed since the last batch
sharing       equal parts of pods are one object in memory
discovery     under which path the cluster has a kind, or that it has none
secrets       which Secrets the policies name
saved         the last known objects on disk
source        all of it together: a `Source`
"""
