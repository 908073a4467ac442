"""Benchmarks: l7proxy and its peers, in one run on one machine. `make bench` runs `python -m bench`.

load      the client in the client pod: keep-alive connections, varied paths and headers
backend   the server in the server pod: the cheapest that answers
envoy     Envoy as a transparent proxy with the same rules, on the same TPROXY port
cpu       what a process has used
"""
