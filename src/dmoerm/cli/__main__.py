"""`python -m dmoerm.cli`: the same command, for launchers that start modules."""

from ..__main__ import main

main()
