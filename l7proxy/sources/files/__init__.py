"""The source that watches a directory of manifests.

source        when a file is read, and when a change is yielded; notify: inotify, the hint to look again
scan          the files of a directory, each as last read, combined; also read once, for commands without an agent
manifest      the bytes of one file, into resources and faults
yaml_lines    YAML and JSON with the line of every field

Not here: what an object means (sources.decode), last good versions (sources.last_good).
"""
