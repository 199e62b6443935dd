"""Reads the properties of a picture from its file, without a decoder: a module for each container.

The decoder gets only the picture: profile, orientation and gamma are extracted here, and other
metadata is removed unread. So a comment or a camera's notes cannot make a good picture fail, and no
parser reads them. Every function is total: data that cannot be understood is passed on unchanged,
and the decoder refuses it. No function takes more than ``MAX_PARTS`` steps; ``bounds`` refuses a
file that has more parts.

Pure.
"""
