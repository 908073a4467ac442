"""Flows: one record per judged thing, in Hubble's shape.

records   what the judging places write: small, named by address, made on the hot path
event     a flow as Hubble knows it, enriched by the agent with names and labels
bus       the ring every flow passes and every reader reads
filters   Hubble's filters, one function each
sinks/    where flows go: JSON lines, …
"""
