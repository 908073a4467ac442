"""Sockets, deadlines and back-pressure: executes what a gate asks for.

server, listener, steering   accept; where sockets listen and from which address they connect
session                      one client connection: events to the gate, the gate's actions to sockets
socket_stream, upstream      one socket's bytes both ways; the connection to the server
splice, pipes                bytes that nobody has to read, moved by the kernel
poller, shares, memory       what is ready, whose turn it is, how much may be held
timer_wheel, context         timeouts; what all sessions of a worker share

Not here: any knowledge of HTTP or of policy.
"""
