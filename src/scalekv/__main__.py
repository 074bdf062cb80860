"""``python -m scalekv`` is the command ``scalekv``."""

from scalekv.cli.app import main

main()
