"""``python -m proxy`` is ``imageproxy``."""

from atproto_imageproxy import main

main()
