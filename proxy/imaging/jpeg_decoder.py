"""Decodes a JPEG with Pillow's own decoder, and finds out whether it got all of its data.

libjpeg invents grey where the data of a scan ends before its last block: at a marker, whichever
that is, so also at the end marker that a truncated file was given. Where the data stops without a
marker, libjpeg waits for more instead. So each scan is given to it without what follows, and with
a few bytes that are no data. If the scan was complete, libjpeg skips those and looks for a marker.
If it waits within a block, data is missing.

Not noticed: a few bits that the last block of a progressive file lacks; what is missing before a
restart marker, which is there for going on (or a progressive file that ends where one is due); and
what a file in arithmetic coding lacks, where libjpeg cannot wait.

Pure.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageFile, JpegImagePlugin

from proxy.errors import UndecodableImage
from proxy.imaging.containers import jpeg

_EOI = bytes([0xFF, jpeg.EOI])

_NO_DATA = b"\xfb"
"""A byte that a reader of markers skips, and that hardly ever ends a block within a scan: of 54
files cut by up to 40 bytes, baseline ones never passed, where ones or zeros let a third pass."""

_AHEAD = 7
"""Maximum bytes that libjpeg needs ahead in a scan, beside one bit of the scan itself."""


class CompleteJpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose ``load`` raises ``UndecodableImage`` if it lacks data; an EOI is not needed."""

    def _open(self) -> None:
        super()._open()
        self.tile = [tile._replace(codec_name=_Decoder.NAME) for tile in self.tile]


class _Decoder(ImageFile.PyDecoder):
    NAME = "complete jpeg"
    _pulls_fd = True

    def init(self, args: tuple[Any, ...]) -> None:
        self._libjpeg = Image._getdecoder(self.mode, "jpeg", args)

    def setimage(self, im: Any, extents: tuple[int, int, int, int] | None = None) -> None:
        super().setimage(im, extents)
        self._libjpeg.setimage(im, extents)

    def cleanup(self) -> None:
        self._libjpeg.cleanup()

    def decode(self, buffer: object) -> tuple[int, int]:
        """Decode the file; the result is that of Pillow's decoder when it has finished.

        Raises:
            UndecodableImage: data is missing.
        """
        data = b"" if self.fd is None else self.fd.read()
        layout = jpeg.layout_of(data)
        if layout.arithmetic:
            end = layout.scan_ends[-1] if layout.scan_ends else len(data)
            return self._finish(data[:end] + _EOI)
        start = 0
        for end in layout.scan_ends:
            used, error = self._decode_scan(memoryview(data)[start:end])
            if used < 0:
                return used, error
            start = end
        if layout.in_one_scan or not layout.brings_everything:
            raise UndecodableImage("a scan, or part of one, is missing")
        return self._finish(_EOI)

    def _decode_scan(self, data: memoryview) -> tuple[int, int]:
        """Decode one scan and what comes before it; the first number is negative at the end."""
        used, error = self._libjpeg.decode(data)
        left = bytes(data[max(used, 0) :]) + _NO_DATA * _AHEAD
        # One more, because libjpeg may hold all of the others in its bit buffer.
        for more in (left, _NO_DATA):
            if used >= 0:
                used, error = self._libjpeg.decode(more)
                if 0 <= used < len(more):
                    raise UndecodableImage("the data of a scan ends early")
        return used, error

    def _finish(self, data: bytes) -> tuple[int, int]:
        used, error = self._libjpeg.decode(data)
        if used >= 0:
            raise UndecodableImage("the data of the last scan ends early")
        return used, error


Image.register_decoder(_Decoder.NAME, _Decoder)
