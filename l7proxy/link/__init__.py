"""The link between the agent and its workers: msgspec frames over a unix socket.

messages   every frame there is
framing    length-prefixed frames on a stream; garbage ends the connection with a LinkError
"""
