"""`python -m perdure.cli`: the same as the `perdure` script."""

from perdure.cli import main

main()
