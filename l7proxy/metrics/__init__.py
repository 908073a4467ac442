"""Prometheus metrics of flows, with the names and labels that Hubble's have.

options    the text of the setting `flow-metrics` → what is counted, with which labels
contexts   flow → values of the labels that name its two ends
families   series of a metric: bounded in number, removed with the pods that they name
flows      flow → the series that it counts in, one function per configured name
sink       the sink that counts events, and what a scrape reads

Not here: the agent's own metrics and the HTTP listener (`agent/metrics`, `agent/health`).
"""
