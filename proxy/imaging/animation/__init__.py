"""Moving pictures: reads their frames as a browser shows them, and writes them smaller.

``film`` gives the frames of a file, each as its whole canvas, and ``write`` makes a file of frames;
both hold a few canvases at a time, never all frames. A module of its own for each format where the
frames are composed or joined here (``read_gif``, ``read_apng``, ``write_gif``, ...). ``transform``
combines them, within bounds.

Pure, but for the time that the bounds are held to.
"""
