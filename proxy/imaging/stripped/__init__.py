"""Copies what a picture needs out of its file, and nothing else: a module for each container.

Each is an allow-list: a byte goes out only if its part is known and needed to show the picture.
What is foreign is left out, and where that cannot be told, the answer is None. So a file that is
served with its own coded pixels reveals no more than a transformed one. The pixels that a decoder
makes of the copy are the same; colour profiles and EXIF are gone, so it is for the caller to know
that they change nothing.

Pure.
"""
