"""The worker: accepts redirected connections and enforces on each, in a gate, the policies that the agent sends.

worker         the worker process
policy_store   the active policies, and the identities of a connection's two ends
server/        listeners, sessions, socket streams, timers: all I/O of connections

Not here: Kubernetes and kernel tables (neither is imported), HTTP (wire, gate), verdicts (policy).
"""
