"""A worker: takes steered connections and has each judged by a gate, under the policies that the agent sends.

worker         one worker put together
policy_store   the policies in force, and who is at the ends of a connection
server/        listeners, sessions, streams, timers: all I/O of connections

Not here: Kubernetes, kernel tables (no import of either), HTTP (wire, gate), verdicts (policy).
"""
