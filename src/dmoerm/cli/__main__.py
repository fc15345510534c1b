"""`python -m dmoerm.cli`: the same command, for launchers that start modules."""

from . import main

main()
