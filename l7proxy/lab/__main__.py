"""`python -m l7proxy.lab` runs `l7proxy lab`."""

from l7proxy.lab.cli import main

main()
