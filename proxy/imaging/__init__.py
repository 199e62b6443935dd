"""Pictures in, pictures out: synchronous, without I/O, the same in a thread or a process.

``containers`` reads what a file says about its picture, ``color`` brings its colours to sRGB,
``encode`` writes results, ``bare`` tells files that hold nothing but a picture, and ``pipeline``
is the way through all of them.
"""
