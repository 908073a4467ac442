"""`python -m l7proxy`."""

from l7proxy.cli.main import main

main()
