"""Sockets, timeouts and back-pressure: executes the actions of gates.

server, listener, steering   accept; where sockets listen, and the source address of upstream connections
session                      one client connection: passes events to the gate, and its actions to the sockets
socket_stream, upstream      one socket's bytes in both directions; opening the connection to the server
splice, pipes                bytes that need no inspection, moved by the kernel
poller, shares, memory       which sockets are ready, in which order they are served, how much may be buffered
timer_wheel, context         timeouts; what all sessions of a worker share

Not here: HTTP and policy.
"""
