"""Transforms pictures: synchronous, without I/O, the same in a thread or a process.

``containers`` reads a file's properties without decoding it, ``decode`` decodes it, ``resample``
scales it, ``color`` converts it to sRGB, and ``encode`` writes results. ``stripped`` copies
what a picture needs out of its file, and ``animation`` reads and writes what moves. ``pipeline``
combines all of them.
"""
