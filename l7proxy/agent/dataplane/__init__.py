"""Turns the cluster state into what workers and kernel enforce on this node.

render           makes the workers' policy snapshot and the kernel's desired state from a view. Pure
reconciler       publishes both; the only place that defines the order of publishing
pod_interfaces   finds the host interface of each pod (CNI results, links, routes)
unknown_pods     closes pod interfaces without a Pod object. Pure
revocation       ends open connections that a new desired state refuses

Not here: parsing of resources or policies, text of kernel rules.
"""
