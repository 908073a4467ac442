"""The link between the agent and its workers: msgspec frames over a unix socket.

messages   all frame types
framing    length-prefixed frames on a stream; invalid bytes raise LinkError
local      a unix socket that only our user and root may use
server     the agent's end: sends policy snapshots, receives records
client     a worker's end: reconnects for ever
delta      policy snapshots as deltas
requests   what a worker asks of the agent, and the answers
fence      keeps a worker with an old policy snapshot from serving
outbox     records to send: bounded, `put` never waits

Not here: what a policy snapshot means. Only the agent and the workers import this package.
"""
