"""Transforms pictures: synchronous, without I/O, the same in a thread or a process.

``containers`` reads a file's properties without decoding it, ``decode`` decodes it, ``resample``
scales it, ``color`` converts it to sRGB, and ``encode`` writes results. ``passthrough`` recognises
files that contain only a picture. ``pipeline`` combines all of them.
"""
