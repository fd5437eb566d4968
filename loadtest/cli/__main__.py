"""`python -m loadtest.cli`: the same as `ullage`."""

from loadtest.cli import main

main()
