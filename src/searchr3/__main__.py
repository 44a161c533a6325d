"""`python -m searchr3` is `searchr3`."""

from searchr3.cli import main

main()
