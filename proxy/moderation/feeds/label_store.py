"""The labels that block, and what each of them asks for. In a database.

What a label asks for has to be known when it is negated or expires: its record may be gone by
then, and another label may ask for the same. Every method blocks; for threads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.moderation.feeds.labels import Label, LabelledRecord
from proxy.shared.sql import SqlDatabase, Statements, placeholders

SCHEMA = """
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY,
    src TEXT NOT NULL,
    uri TEXT NOT NULL,
    blob TEXT NOT NULL,      -- '' where it is about an account or a record
    val TEXT NOT NULL,
    cts REAL NOT NULL,
    exp REAL,
    neg INTEGER NOT NULL,
    ended INTEGER NOT NULL,  -- its expiry was carried out
    did TEXT NOT NULL,       -- of the record that has to be asked for, with the three below
    collection TEXT NOT NULL,
    key TEXT NOT NULL,
    version TEXT NOT NULL,
    tries INTEGER NOT NULL,
    ask_at REAL,             -- when the record is asked for next; NULL: its blobs are known
    UNIQUE (src, uri, blob, val)
);
CREATE TABLE IF NOT EXISTS asks (
    label INTEGER NOT NULL REFERENCES labels (id),
    did TEXT NOT NULL,       -- '': every owner
    cid TEXT NOT NULL,       -- '': every blob
    gone INTEGER NOT NULL,   -- asked for no more; kept until that was carried out
    PRIMARY KEY (label, did, cid)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS asks_by_selection ON asks (did, cid);
CREATE INDEX IF NOT EXISTS labels_by_expiry ON labels (exp) WHERE NOT neg AND NOT ended;
CREATE INDEX IF NOT EXISTS labels_by_end ON labels (exp) WHERE NOT neg AND ended;
CREATE INDEX IF NOT EXISTS labels_by_asking ON labels (ask_at) WHERE NOT neg AND NOT ended;
CREATE TABLE IF NOT EXISTS followed (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    src TEXT NOT NULL UNIQUE,
    settings TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS forgotten (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    did TEXT NOT NULL
);
"""

_NO_ID = 0
"""The id of no label: a list of a condition must have an element."""

MAX_FORGOTTEN = 10_000
"""Events about identities that processes can lag behind; they look every second."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A label that was kept, as far as its work needs it.

    Attributes:
        cts, version: tell whether another one took its place meanwhile. One that was made at the
            same moment may be about another version of the record.
        tries: how often its record was asked for in vain.
    """

    id: int
    src: str
    uri: str
    val: str
    cts: float
    version: str
    tries: int


_KEPT = "id, src, uri, val, cts, version, tries"


@dataclass(frozen=True, slots=True)
class Touched:
    """Selections that have to be blocked, or whose blocks have to be lifted, for one labeler."""

    label: Kept
    block: tuple[Selection, ...]
    lift: tuple[Selection, ...]


class FeedStore:
    """The labels of one cache folder or cluster, and the identities that changed.

    Every method may raise ``sqlite3.Error`` or ``OSError``.

    Args:
        database: has the tables of ``SCHEMA``. A commit there is durable. A cursor is stored after
            the labels before it: a label that was lost here comes again.
    """

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    def close(self) -> None:
        """Close every connection. The next call opens one again."""
        self._database.close()

    def exists(self) -> bool:
        """Whether anything was ever kept here."""
        return self._database.exists()

    def follow(self, src: str, settings: str) -> int:
        """Return a number for a labeler as it is followed; it changes when ``settings`` change.

        With other settings a labeler has to be followed from the beginning.
        """
        with self._database.writing() as database:
            known = database.execute(
                "SELECT id, settings FROM followed WHERE src = ?", (src,)
            ).fetchone()
            if known is not None and known[1] == settings:
                return int(known[0])
            database.execute("DELETE FROM followed WHERE src = ?", (src,))
            (number,) = database.execute(
                "INSERT INTO followed (src, settings) VALUES (?, ?) RETURNING id", (src, settings)
            ).fetchone()
            return int(number)

    def put(self, label: Label, subject: Selection | LabelledRecord, now: float) -> Touched | None:
        """Keep a label, and return what it changes; None if a newer one is known.

        Of two made at the same time the one that comes later counts. A label about a record is
        asked for at ``now``.
        """
        record = subject if isinstance(subject, LabelledRecord) else None
        blob = "" if isinstance(subject, LabelledRecord) else (subject.cid or "")
        key = (label.src, label.uri, blob, label.val)
        with self._database.writing() as database:
            known = database.execute(
                "SELECT id, cts FROM labels WHERE src = ? AND uri = ? AND blob = ? AND val = ?", key
            ).fetchone()
            if known is not None and known[1] > label.cts:
                return None
            version = (record.cid or "") if record else ""
            row = (
                label.cts,
                label.exp,
                label.neg,
                record.did if record else "",
                record.collection if record else "",
                record.key if record else "",
                version,
                now if record and not label.neg else None,
            )
            if known is None:
                (number,) = database.execute(
                    "INSERT INTO labels (src, uri, blob, val, cts, exp, neg, did, collection, key,"
                    " version, ask_at, ended, tries)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, FALSE, 0) RETURNING id",
                    (*key, *row),
                ).fetchone()
            else:
                number = known[0]
                database.execute(
                    "UPDATE labels SET cts = ?, exp = ?, neg = ?, did = ?, collection = ?, key = ?,"
                    " version = ?, ask_at = ?, ended = FALSE, tries = 0 WHERE id = ?",
                    (*row, number),
                )
            kept = Kept(number, label.src, label.uri, label.val, label.cts, version, 0)
            before = _asks(database, number)
            if not isinstance(subject, LabelledRecord) and not label.neg:
                _replace_asks(database, number, [subject])
                before |= {_pair(subject)}
            return _touched(database, kept, before, now)

    def due(
        self, now: float, latest: float, limit: int, under_way: Collection[int]
    ) -> list[tuple[Kept, LabelledRecord]]:
        """Labels whose record has to be asked for, those that wait longest first.

        Args:
            latest: a later time to ask at is of a clock that was ahead: it has come too.
            under_way: ids of those that are left out.
        """
        busy = (_NO_ID, *under_way)
        with self._database.reading() as database:
            rows = database.execute(
                f"SELECT {_KEPT}, did, collection, key FROM labels"  # noqa: S608
                " WHERE NOT neg AND NOT ended AND (ask_at <= ? OR ask_at > ?)"
                f" AND id NOT IN ({placeholders(busy)}) ORDER BY ask_at LIMIT ?",
                (now, latest, *busy, limit),
            ).fetchall()
        return [
            (kept, LabelledRecord(Did(did), collection, key, kept.version or None))
            for kept, did, collection, key in ((Kept(*row[:7]), *row[7:]) for row in rows)
        ]

    def answered(
        self, label: Kept, selections: Collection[Selection], now: float
    ) -> Touched | None:
        """Note what a label's record refers to; what changes. None where a newer label came."""
        with self._database.writing() as database:
            if not _is_current(database, label):
                return None
            before = _asks(database, label.id)
            _replace_asks(database, label.id, selections)
            return _touched(database, label, before | set(map(_pair, selections)), now)

    def changed_since(self, touched: Touched, now: float) -> Touched:
        """What is otherwise by now than ``touched`` says."""
        pairs = [_pair(each) for each in (*touched.block, *touched.lift)]
        with self._database.reading() as database:
            found = _touched(database, touched.label, pairs, now)
        return Touched(
            touched.label,
            tuple(each for each in found.block if each not in touched.block),
            tuple(each for each in found.lift if each not in touched.lift),
        )

    def settled(self, label: Kept) -> None:
        """Note that what a label asks for is known, and was carried out."""
        with self._database.writing() as database:
            if database.execute(
                "UPDATE labels SET ask_at = NULL WHERE id = ? AND cts = ? AND version = ?",
                (label.id, label.cts, label.version),
            ).rowcount:
                database.execute("DELETE FROM asks WHERE label = ? AND gone", (label.id,))

    def postpone(self, label: Kept, until: float) -> None:
        """Have a label's record asked for again."""
        with self._database.writing() as database:
            database.execute(
                "UPDATE labels SET ask_at = ?, tries = tries + 1"
                " WHERE id = ? AND cts = ? AND version = ?",
                (until, label.id, label.cts, label.version),
            )

    def expired(self, now: float, limit: int) -> list[Touched]:
        """What changes by labels that expired, until ``ended`` is called for each."""
        with self._database.reading() as database:
            rows = database.execute(
                f"SELECT {_KEPT} FROM labels"  # noqa: S608
                " WHERE NOT neg AND NOT ended AND exp <= ? ORDER BY exp LIMIT ?",
                (now, limit),
            ).fetchall()
            labels = [Kept(*row) for row in rows]
            return [_touched(database, label, _asks(database, label.id), now) for label in labels]

    def resumed(self, latest: float, limit: int) -> list[Touched]:
        """What changes by labels that ended before their time, until ``resume`` is called for each.

        Args:
            latest: a label that ended and expires later did so by a clock that was ahead.
        """
        with self._database.reading() as database:
            rows = database.execute(
                f"SELECT {_KEPT} FROM labels"  # noqa: S608
                " WHERE NOT neg AND ended AND exp > ? LIMIT ?",
                (latest, limit),
            ).fetchall()
            found = []
            for label in (Kept(*row) for row in rows):
                asks = database.execute(
                    "SELECT did, cid FROM asks WHERE label = ? AND NOT gone", (label.id,)
                )
                found.append(Touched(label, tuple(map(_selection, asks.fetchall())), ()))
            return found

    def resume(self, label: Kept) -> None:
        """Note that a label that had ended is in force again."""
        with self._database.writing() as database:
            database.execute("UPDATE labels SET ended = FALSE WHERE id = ?", (label.id,))

    def ended(self, label: Kept) -> None:
        """Note that the end of a label was carried out."""
        with self._database.writing() as database:
            database.execute(
                "UPDATE labels SET ended = TRUE WHERE id = ? AND cts = ?", (label.id, label.cts)
            )

    def next_at(self, under_way: Collection[int]) -> tuple[float | None, float | None]:
        """When the next record is to be asked for, and when the next label expires.

        Args:
            under_way: ids of those whose record is being asked for.
        """
        busy = (_NO_ID, *under_way)
        with self._database.reading() as database:
            (ask_at,) = database.execute(
                "SELECT min(ask_at) FROM labels WHERE NOT neg AND NOT ended"  # noqa: S608
                f" AND id NOT IN ({placeholders(busy)})",
                busy,
            ).fetchone()
            (expires_at,) = database.execute(
                "SELECT min(exp) FROM labels WHERE NOT neg AND NOT ended"
            ).fetchone()
        return ask_at, expires_at

    def waiting(self) -> int:
        """Labels whose record's blobs are not known yet."""
        with self._database.reading() as database:
            (count,) = database.execute(
                "SELECT count(*) FROM labels WHERE NOT neg AND NOT ended AND ask_at IS NOT NULL"
            ).fetchone()
        return int(count)

    def unwanted(
        self, subscribed: Collection[str], values: Collection[str], now: float, limit: int
    ) -> list[Touched]:
        """What changes when labels of others and with other values are gone, until ``remove``."""
        # No labeler and no label have the empty name; a list must have an element.
        sources, names = ("", *subscribed), ("", *values)
        with self._database.writing() as database:
            database.execute(
                f"DELETE FROM followed WHERE src NOT IN ({placeholders(sources)})",  # noqa: S608
                sources,
            )
            rows = database.execute(
                f"SELECT {_KEPT} FROM labels WHERE NOT ("  # noqa: S608
                f" src IN ({placeholders(sources)}) AND val IN ({placeholders(names)})) LIMIT ?",
                (*sources, *names, limit),
            ).fetchall()
            labels = [Kept(*row) for row in rows]
            database.executemany(
                "UPDATE labels SET ended = TRUE WHERE id = ?", [(label.id,) for label in labels]
            )
            return [_touched(database, label, _asks(database, label.id), now) for label in labels]

    def remove(self, labels: Iterable[Kept]) -> None:
        """Forget labels."""
        ids = [(label.id,) for label in labels]
        with self._database.writing() as database:
            database.executemany("DELETE FROM asks WHERE label = ?", ids)
            database.executemany("DELETE FROM labels WHERE id = ?", ids)

    def add_forgotten(self, did: Did) -> None:
        """Tell every process that the document of ``did`` changed."""
        with self._database.writing() as database:
            (number,) = database.execute(
                "INSERT INTO forgotten (did) VALUES (?) RETURNING id", (did,)
            ).fetchone()
            database.execute("DELETE FROM forgotten WHERE id <= ?", (number - MAX_FORGOTTEN,))

    def forgotten_since(self, last: int | None) -> tuple[int, list[Did]]:
        """The last number given, and what was told after ``last``; nothing after None."""
        with self._database.reading() as database:
            (newest,) = database.execute("SELECT max(id) FROM forgotten").fetchone()
            if last is None or newest is None or newest <= last:
                return max(newest or 0, last or 0), []
            rows = database.execute(
                "SELECT did FROM forgotten WHERE id > ? ORDER BY id", (last,)
            ).fetchall()
        return newest, [Did(did) for (did,) in rows]


def _is_current(database: Statements, label: Kept) -> bool:
    row = database.execute(
        "SELECT 1 FROM labels WHERE id = ? AND cts = ? AND version = ? AND NOT neg",
        (label.id, label.cts, label.version),
    ).fetchone()
    return row is not None


def _asks(database: Statements, label: int) -> set[tuple[str, str]]:
    return set(database.execute("SELECT did, cid FROM asks WHERE label = ?", (label,)).fetchall())


def _replace_asks(database: Statements, label: int, selections: Collection[Selection]) -> None:
    database.execute("UPDATE asks SET gone = TRUE WHERE label = ?", (label,))
    database.executemany(
        "INSERT INTO asks VALUES (?, ?, ?, FALSE)"
        " ON CONFLICT (label, did, cid) DO UPDATE SET gone = FALSE",
        [(label, *_pair(each)) for each in selections],
    )


def _touched(
    database: Statements, label: Kept, pairs: Collection[tuple[str, str]], now: float
) -> Touched:
    block: list[Selection] = []
    lift: list[Selection] = []
    for did, cid in sorted(pairs):
        wanted = database.execute(
            "SELECT 1 FROM asks JOIN labels ON labels.id = asks.label"
            " WHERE asks.did = ? AND asks.cid = ? AND src = ?"
            " AND NOT gone AND NOT neg AND NOT ended AND (exp IS NULL OR exp > ?) LIMIT 1",
            (did, cid, label.src, now),
        ).fetchone()
        (lift if wanted is None else block).append(_selection((did, cid)))
    return Touched(label, tuple(block), tuple(lift))


def _selection(pair: tuple[str, str]) -> Selection:
    did, cid = pair
    return Selection(Did(did) if did else None, Cid(cid) if cid else None)


def _pair(selection: Selection) -> tuple[str, str]:
    return selection.did or "", selection.cid or ""
