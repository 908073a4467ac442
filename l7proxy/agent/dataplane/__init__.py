"""From the cluster's state to what workers and kernel enforce on this node.

render           a view and its policies into the workers' picture and the kernel's. Pure
reconciler       when what is published: the one place that knows the order
pod_interfaces   which host interface belongs to which pod (CNI results, links, routes)
unknown_pods     interfaces that no Pod explains: closed. Pure
revocation       what a new picture takes away ends connections that have begun

Not here: parsing of resources or policies, the text of rules.
"""
