"""``python -m proxy`` is ``imageproxy``."""

from proxy.cli import main

main()
