"""Turns a JPEG upright without a loss: its coefficients move, and none is computed anew. Pure.

A picture of transformed blocks is mirrored by mirroring the order of its blocks, and within each by
the sign of every second frequency; turned, by exchanging rows and columns as well (ITU-T T.81,
A.3.3). Blocks that the edge of the picture cuts cannot be mirrored.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count

from proxy.imaging.containers.jpeg import SOS
from proxy.imaging.stripped import jpeg
from proxy.imaging.stripped.jpeg_scans import Frame, Scan, intervals, known
from proxy.imaging.stripped.parts import need

MOST_STEPS = 80_000
"""Maximum of the blocks and half of the bytes of what is turned: half a second of work."""

_TRANSPOSED = frozenset({5, 6, 7, 8})
_MIRRORED_ACROSS = frozenset({2, 3, 6, 7})  # after rows and columns were exchanged
_MIRRORED_DOWN = frozenset({3, 4, 7, 8})

# The column and row of each coefficient, in the order of a file.
_ZIGZAG = sorted(
    ((at % 8, at // 8) for at in range(64)),
    key=lambda place: (sum(place), place[1] if sum(place) % 2 else place[0]),
)

Block = list[tuple[int, int]]
"""The coefficients of a block that are not zero: place in the order of a file, and value."""


def turn(source: bytes, orientation: int, most: int) -> bytes:
    """Return the upright picture of a JPEG of the EXIF orientation 2 to 8, and nothing else.

    Args:
        most: the coded data of the source must not exceed this number of bytes.

    Raises:
        NotUnderstood: see ``jpeg.read``; or the file is progressive, has several scans, or blocks
            that cannot be mirrored; or takes more than ``MOST_STEPS``.
    """
    file = jpeg.read(source)
    frame = Frame.read(file.frame)
    scans = [part for part in file.parts if isinstance(part, tuple)]
    need(len(scans) == 1 and not file.progressive)
    scan, data = scans[0]
    need(len(data) <= most and scan.components == list(frame.components))
    need(frame.blocks + len(data) // 2 <= MOST_STEPS)
    need(_can_be_mirrored(file.frame, orientation))
    grids = [_turned(grid, orientation) for grid in _grids(frame, scan, data)]
    upright = _upright(file.frame, orientation)
    return jpeg.written(file, [*_tables(file, orientation), *_coded(upright, grids)])


def _can_be_mirrored(body: bytes, orientation: int) -> bool:
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    single = body[5] == 1
    across = 8 if single else 8 * max(factor >> 4 for factor in body[7::3])
    down = 8 if single else 8 * max(factor & 15 for factor in body[7::3])
    if orientation in _TRANSPOSED:
        width, height, across, down = height, width, down, across
    return not (
        (orientation in _MIRRORED_ACROSS and width % across)
        or (orientation in _MIRRORED_DOWN and height % down)
    )


def _grids(frame: Frame, scan: Scan, data: bytes) -> list[list[list[Block]]]:
    """Return rows of blocks for each component."""
    places = list(_places(frame))
    grids: list[list[list[Block]]] = []
    for component in frame.components.values():
        columns, rows = component.columns, component.rows
        if len(frame.components) > 1:
            columns, rows = frame.mcus[0] * component.across, frame.mcus[1] * component.down
        grids.append([[[] for _ in range(columns)] for _ in range(rows)])
    codes = [(known(dc), known(ac)) for dc, ac in zip(scan.dc, scan.ac, strict=True)]
    for bits, start, end in intervals(frame, scan, data):
        before = [0] * len(grids)
        for unit in range(start, end):
            for which, row, column in places[unit]:
                dc, ac = codes[which]
                block: Block = []
                size = bits.symbol(dc)
                before[which] += bits.signed(size)
                if before[which]:
                    block.append((0, before[which]))
                at = 1
                while at < 64:
                    symbol = bits.symbol(ac)
                    size = symbol & 15
                    at += symbol >> 4
                    if size:
                        need(at < 64)
                        block.append((at, bits.signed(size)))
                    elif symbol == 0:
                        break
                    at += 1
                grids[which][row][column] = block
        bits.walked()
    return grids


def _places(frame: Frame) -> Iterator[list[tuple[int, int, int]]]:
    """Yield for each unit of a scan of all components: which component, row and column."""
    components = list(frame.components.values())
    if len(components) == 1:
        (only,) = components
        for at in range(only.columns * only.rows):
            yield [(0, at // only.columns, at % only.columns)]
        return
    for unit in range(frame.mcus[0] * frame.mcus[1]):
        top, left = divmod(unit, frame.mcus[0])
        yield [
            (which, top * component.down + row, left * component.across + column)
            for which, component in enumerate(components)
            for row in range(component.down)
            for column in range(component.across)
        ]


def _turned(grid: list[list[Block]], orientation: int) -> list[list[Block]]:
    moves = _moves(orientation)
    if orientation in _TRANSPOSED:
        grid = [list(row) for row in zip(*grid, strict=True)]
    if orientation in _MIRRORED_DOWN:
        grid = grid[::-1]
    if orientation in _MIRRORED_ACROSS:
        grid = [row[::-1] for row in grid]
    return [
        [sorted((moves[at][0], moves[at][1] * value) for at, value in block) for block in row]
        for row in grid
    ]


def _moves(orientation: int) -> list[tuple[int, int]]:
    """Return for each coefficient its new place, and the sign that it gets."""
    found = []
    for column, row in _ZIGZAG:
        if orientation in _TRANSPOSED:
            column, row = row, column
        odd = (orientation in _MIRRORED_ACROSS and column % 2) + (
            orientation in _MIRRORED_DOWN and row % 2
        )
        found.append((_ZIGZAG.index((column, row)), -1 if odd % 2 else 1))
    return found


def _upright(body: bytes, orientation: int) -> bytes:
    if orientation not in _TRANSPOSED:
        return body
    swapped = bytearray(body)
    swapped[1:5] = body[3:5] + body[1:3]
    swapped[7::3] = bytes((factor & 15) << 4 | factor >> 4 for factor in body[7::3])
    return bytes(swapped)


def _tables(file: jpeg.File, orientation: int) -> Iterator[bytes]:
    moves = _moves(orientation)
    for table in file.quantization.values():
        if table.used:
            step = 2 if table.name & 0xF0 else 1
            values = bytearray(len(table.values))
            for at, (place, _) in enumerate(moves):
                value = table.values[step * at : step * at + step]
                values[step * place : step * place + step] = value
            yield jpeg.segment_of(jpeg.DQT, bytes([table.name]) + values)


Symbol = tuple[int, int, int, int]
"""Which table (that of a DHT segment), the symbol, and the value and number of bits after it."""


def _coded(frame: bytes, grids: list[list[list[Block]]]) -> Iterator[bytes]:
    """Yield the segments from the frame to the end of the scan, with codes made for it."""
    symbols = list(_symbols(Frame.read(frame), grids))
    counts: dict[int, Counter[int]] = {}
    for name, symbol, _, _ in symbols:
        counts.setdefault(name, Counter())[symbol] += 1
    lengths = {name: code_lengths(found) for name, found in counts.items()}
    yield jpeg.segment_of(jpeg.SOF0, frame)
    codes: dict[tuple[int, int], tuple[int, int]] = {}
    for name, ordered in sorted(lengths.items()):
        body = bytes(sum(length == n for _, length in ordered) for n in range(1, 17))
        body += bytes(symbol for symbol, _ in ordered)
        yield jpeg.segment_of(jpeg.DHT, bytes([name]) + body)
        code = before = 0
        for symbol, length in ordered:
            code <<= length - before
            codes[name, symbol] = code, length
            code, before = code + 1, length
    names = list(frame[6::3])
    selectors = b"".join(
        bytes([identifier, 0x11 if place else 0]) for place, identifier in enumerate(names)
    )
    yield jpeg.segment_of(SOS, bytes([len(names)]) + selectors + b"\0\x3f\0")
    out = bytearray()
    held = left = 0
    for name, symbol, value, size in symbols:
        code, length = codes[name, symbol]
        held = (held << length | code) << size | value
        left += length + size
        if left >= 512:
            left -= 512
            out += (held >> left).to_bytes(64, "big")
            held &= (1 << left) - 1
    padding = -left % 8
    out += (held << padding | (1 << padding) - 1).to_bytes((left + padding) // 8, "big")
    yield bytes(out).replace(b"\xff", b"\xff\0")


def _symbols(frame: Frame, grids: list[list[list[Block]]]) -> Iterator[Symbol]:
    before = [0] * len(grids)
    for unit in _places(frame):
        for which, row, column in unit:
            block = grids[which][row][column]
            name = 1 if which else 0
            dc = block[0][1] if block and block[0][0] == 0 else 0
            value, size = _bits(dc - before[which])
            before[which] = dc
            yield name, size, value, size
            name |= 0x10
            filled = 0
            for at, coefficient in block:
                if at:
                    run = at - filled - 1
                    while run > 15:
                        yield name, 0xF0, 0, 0
                        run -= 16
                    value, size = _bits(coefficient)
                    yield name, run << 4 | size, value, size
                    filled = at
            if filled < 63:
                yield name, 0, 0, 0


def _bits(value: int) -> tuple[int, int]:
    """Return the bits that say which value of a size it is, and the size (T.81, F.1.2.1)."""
    size = abs(value).bit_length()
    return (value if value >= 0 else value + (1 << size) - 1), size


def code_lengths(counts: Mapping[int, int]) -> list[tuple[int, int]]:
    """Return the symbols and the lengths of their codes, the shortest first, at most 16 bits.

    Of the longest codes one stays free, as no code may be all ones (T.81, K.2).
    """
    order = count()
    # Each entry: how often, a number to break ties, and the symbols with their lengths so far.
    heap: list[tuple[int, int, dict[int, int]]] = [
        (number, next(order), {symbol: 0}) for symbol, number in sorted(counts.items())
    ]
    heap.append((0, next(order), {-1: 0}))
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, _, first), (two, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        deeper = {symbol: length + 1 for symbol, length in (first | second).items()}
        heapq.heappush(heap, (one + two, next(order), deeper))
    lengths = heap[0][2]
    of_length = Counter(lengths.values())
    for length in range(max(of_length), 16, -1):
        while of_length[length]:
            # Two go up to the length of their parent, and a shorter code makes room for one.
            shorter = next(n for n in range(length - 2, 0, -1) if of_length[n])
            of_length[length] -= 2
            of_length[length - 1] += 1
            of_length[shorter + 1] += 2
            of_length[shorter] -= 1
    of_length[max(n for n, many in of_length.items() if many)] -= 1  # that of no symbol
    symbols = sorted((s for s in lengths if s >= 0), key=lambda s: (lengths[s], s))
    return list(zip(symbols, sorted(of_length.elements()), strict=True))
