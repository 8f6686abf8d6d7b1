"""`python -m ops` is `accord`."""

from ops.cli import main

main()
