"""The link between the agent and its workers: msgspec frames over a unix socket.

messages   every frame there is
framing    length-prefixed frames on a stream; garbage ends the connection with a LinkError
local      a unix socket that only we and root may use
server     the agent's half: pictures out, records in
client     a worker's half: dials for ever
delta      a picture as whole or as the difference to the last one
outbox     records on their way: bounded, never waits

Not here: what a picture means. Only the two ends import this.
"""
