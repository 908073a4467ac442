"""Where resources come from: manifests in files today.

files, inotify        a directory, read anew when it changes; the last good version of what is broken
manifests, objects    documents into resources; fields, yaml_lines: with the line of every fault

Not here: what resources mean together (cluster), what a policy says (policy.lang).
"""
