"""Reads resources from a Kubernetes API server, and holds the connection that other parts of the agent use, too.

credentials   where the API server is, and as whom we ask: the pod's ServiceAccount, or a kubeconfig
connection    authenticated requests and streams; answers are raw bytes
"""
