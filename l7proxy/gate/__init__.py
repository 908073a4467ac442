"""Gates: pure machines that judge one connection's bytes. Bytes in, actions out.

A gate owns no socket, no clock, no logger: what it wants done, it asks for (actions.py). One gate serves one client
connection and is thrown away with it.
"""
