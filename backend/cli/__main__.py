"""`python -m backend.cli` is `clip-backend`."""

from backend.cli import main

main()
