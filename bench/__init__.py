"""Figures, in one run on one machine, ours beside the peers'. `make bench` runs `python -m bench`.

load      the client: keep-alive connections, varied paths and headers, in the client pod
backend   the server: the cheapest that answers, in the server pod
envoy     Envoy as a transparent proxy with the same rules, taking the same TPROXY port
cpu       what a process has used
"""
