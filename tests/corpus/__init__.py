"""Every file of a corpus through the real service, and what comes out held to Chromium and libvips.

``./run corpus`` takes the corpus that ``tests.corpus.generated`` makes, ``./run corpus FOLDER`` the
files of a folder. Both write a page with the worst differences first.
"""
