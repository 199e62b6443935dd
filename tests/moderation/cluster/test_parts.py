"""The parts of a cluster: its tables, its leases, its turns, and the name of served files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from proxy.coordination.cluster import lease, watcher
from proxy.coordination.cluster.keeper import LeaseKeeper
from proxy.coordination.cluster.lease import Lease, boot_clock
from proxy.coordination.cluster.members import LeaseLost, Members
from proxy.coordination.cluster.served_name import ServedName
from proxy.coordination.cluster.turns import ClusterLeadership
from proxy.coordination.leader import as_leader
from proxy.coordination.replicas import SERVES_NOTHING
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.cluster.schema import STEPS, SchemaTooNew, migrate
from proxy.moderation.cluster.store import ClusterStore
from proxy.shared.postgres import PostgresConnection, PostgresDatabase, PostgresError
from tests.moderation import OWNER, decide
from tests.postgres import Postgres
from tests.processes import until

pytestmark = pytest.mark.slow


@pytest.fixture
def database(database_url: str) -> Iterator[PostgresDatabase]:
    """An empty database, whose tables are made by its first use."""
    with closing(connected(database_url)) as database:
        yield database


def connected(url: str, patience: float = 30) -> PostgresDatabase:
    return PostgresDatabase(url, lock=1, patience=patience, prepare=migrate)


# The tables


def test_processes_that_start_together_make_the_tables_once(database_url: str) -> None:
    """Catches a start that fails because another one makes the tables at the same time."""
    databases = [connected(database_url) for _ in range(6)]
    start, failures = threading.Barrier(6), []

    def work(database: PostgresDatabase) -> None:
        start.wait()
        try:
            ClusterStore(database, "").load()
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(each,)) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with databases[0].reading() as rows:
        (steps,) = rows.execute("SELECT count(*) FROM imageproxy_steps").fetchone()
    for each in databases:
        each.close()
    assert (failures, steps) == ([], len(STEPS))


def test_a_step_that_fails_leaves_what_was_and_is_tried_again(database: PostgresDatabase) -> None:
    """Catches half a step, after which no release can go on."""
    with database.reading() as rows:
        broken = (*STEPS, ("CREATE TABLE more (a integer)", "CREATE TABLE more (a integer)"))
        with pytest.raises(PostgresError, match="already exists"):
            migrate(rows, broken)
    with database.reading() as rows:
        assert rows.execute("SELECT to_regclass('more')::text").fetchone() == (None,)
        migrate(rows, (*STEPS, ("CREATE TABLE more (a integer)",)))
        assert rows.execute("SELECT to_regclass('more')::text").fetchone() == ("more",)


@pytest.mark.parametrize("is_refusal", [False, True])
def test_a_purge_that_fails_at_the_cdn_is_recorded(
    database: PostgresDatabase, is_refusal: bool
) -> None:
    """Catches a boolean that is added to a number: SQLite does, and PostgreSQL refuses it."""
    queue = CdnQueue(database, lambda: 5.0)
    queue.add([OWNER])
    queue.failed(queue.all(), "status 429", is_refusal=is_refusal)
    (pending,) = queue.all()
    assert (pending.failures, pending.failed_at, pending.error) == (is_refusal, 5.0, "status 429")


def test_an_older_release_refuses_the_tables_of_a_newer_one(database_url: str) -> None:
    """Catches blocks that are read by a release that does not know what they mean by now."""
    with closing(connected(database_url)) as newer, newer.reading() as rows:
        migrate(rows, (*STEPS, ("SELECT 1",)))
    with (
        closing(connected(database_url)) as older,
        pytest.raises(SchemaTooNew, match=f"of step {len(STEPS) + 1}, .* knows {len(STEPS)} steps"),
    ):
        ClusterStore(older, "").load()


def test_rights_on_one_schema_are_enough(postgres: Postgres, database_url: str) -> None:
    """Catches a statement that only the owner of a database may run."""
    name = database_url.rpartition("/")[2]
    role = f"narrow_{name}"
    postgres.execute(
        f"CREATE ROLE {role} LOGIN",
        f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {name} TO {role}",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f"CREATE SCHEMA decisions AUTHORIZATION {role}",
        database=name,
    )
    url = f"{postgres.url(name, user=role)}?options=-csearch_path%3Ddecisions"
    with closing(connected(url)) as database:
        store = ClusterStore(database, "")
        decide(store, OWNER)
        assert [each.did for each in store.blocks()] == [OWNER.did]
        members = Members(database, Path("/"), Lease(60), None)
        members.enter()
        members.renew()
        turn = ClusterLeadership(database, "feeds")
        assert turn.take()
        turn.give_up()
        members.leave()
    with closing(connected(database_url)) as public, public.reading() as rows:
        assert rows.execute("SELECT count(*) FROM blocks").fetchone() == (0,)


@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
def test_reasons_are_read_as_they_were_written_whatever_the_locale_of_the_server(
    encoding: str, postgres: Postgres, database_url: str
) -> None:
    """Catches a database made in the locale C, whose texts come back as bytes: no block is read."""
    name = f"{database_url.rpartition('/')[2]}_{encoding.lower()}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    with closing(connected(postgres.url(name))) as database:
        store = ClusterStore(database, "")
        store.record("block", [(OWNER, "caf\u00e9 \u30a2")], by="a test", owner="nobody")
        assert [each.reason for each in store.blocks()] == ["caf\u00e9 \u30a2"]
        assert len(store.load().blocks) == 1


def test_a_database_that_cannot_keep_every_text_is_refused_before_anything_is_in_it(
    postgres: Postgres, database_url: str
) -> None:
    """Catches decisions that fail one day because of a letter in their reason."""
    name = f"{database_url.rpartition('/')[2]}_latin"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with (
        closing(connected(postgres.url(name))) as database,
        pytest.raises(PostgresError, match="LATIN1, and has to have UTF8"),
    ):
        ClusterStore(database, "").load()


def test_a_server_that_takes_no_decisions_is_not_read_either(
    postgres: Postgres, database_url: str
) -> None:
    """Catches decisions that are read from a standby, which may be behind what has answered."""
    with closing(connected(database_url)) as database:
        ClusterStore(database, "").load()
    name = database_url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with (
        closing(connected(database_url)) as database,
        pytest.raises(PostgresError, match="read-only"),
    ):
        ClusterStore(database, "").version()


def test_a_process_that_stands_still_in_a_transaction_does_not_hold_others_up_for_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a stopped machine for which decisions of all others fail for a minute."""
    monkeypatch.setattr("proxy.shared.postgres._LATEST", 1.0)
    with (
        closing(connected(database_url)) as stopped,
        closing(connected(database_url)) as other,
        pytest.raises(PostgresError, match="idle-in-transaction"),
        stopped.writing(),
    ):
        decide(ClusterStore(other, ""), OWNER)


def test_an_error_names_no_password(postgres: Postgres) -> None:
    """Catches a log with the password of the database."""
    url = f"postgresql://user:very-secret@127.0.0.1:{postgres.port}/absent"
    with pytest.raises(PostgresError) as caught, connected(url).reading():
        pass
    assert "very-secret" not in str(caught.value)


# Leases


def test_a_lease_that_has_ended_cannot_be_renewed(database: PostgresDatabase) -> None:
    """Catches a process that goes on after others have decided without it."""
    first, second = (Members(database, Path("/"), Lease(60), None) for _ in range(2))
    for members in (first, second):
        members.enter()
        members.note(3)
    assert first.late(4) == {first.token, second.token}
    with database.reading() as rows:
        rows.execute(
            "UPDATE members SET expires = clock_timestamp() WHERE token = ?", (second.token,)
        )
    assert first.late(4) == {first.token}
    assert first.living() == {first.token}
    with pytest.raises(LeaseLost):
        second.renew()
    assert not second.lease.runs()
    second.enter()
    assert second.lease.runs()
    assert first.late(4) == {first.token}, "it serves nothing yet"
    second.note(4)
    assert first.serving() == 1
    second.note(SERVES_NOTHING)
    assert first.serving() == 0


def test_a_process_that_counts_its_lease_as_ended_joins_anew(database: PostgresDatabase) -> None:
    """Catches a renewal by the database's count, when its own has let requests be refused."""
    members = Members(database, Path("/"), Lease(60), None)
    members.enter()
    members.lease.end()
    with pytest.raises(LeaseLost):
        members.renew()


def test_a_renewal_whose_answer_comes_after_the_end_renews_nothing(database_url: str) -> None:
    """Catches a commit that took long: others have seen the lease end, and have answered."""

    class Slow(PostgresDatabase):
        @contextmanager
        def reading(self) -> Iterator[PostgresConnection]:
            with super().reading() as rows:
                yield rows
            if members.lease.runs():
                members.lease.end()  # as by its own count, before the commit is answered

    with closing(connected(database_url)) as database:
        members = Members(database, Path("/"), Lease(60), None)
        members.enter()
        with closing(Slow(database_url, lock=1, patience=30)) as slow:
            members._database = slow
            with pytest.raises(LeaseLost):
                members.renew()
        assert not members.lease.runs()


def test_a_lease_is_counted_from_before_it_was_asked_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a machine that counts from the answer: others' count ends before its own."""
    now = 1000.0

    class Slow(PostgresDatabase):
        @contextmanager
        def reading(self) -> Iterator[PostgresConnection]:
            nonlocal now
            with super().reading() as rows:
                yield rows
            now += 10

    for module in ("lease", "members"):
        monkeypatch.setattr(f"proxy.coordination.cluster.{module}.boot_clock", lambda: now)
    with closing(Slow(database_url, lock=1, patience=30, prepare=migrate)) as slow:
        member = Members(slow, Path("/"), Lease(60), None)
        for ask in (member.enter, member.renew):
            asked_at = now
            ask()
            assert member.lease.deadline == pytest.approx(asked_at + 60 * lease.SHARE)


# Turns


async def test_a_chore_moves_to_another_process_when_its_leaders_connection_ends(
    database_url: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a leader that does not notice that it is none, and a chore that nobody does."""
    for name in ("RETRY_SECONDS", "CHECK_SECONDS"):
        monkeypatch.setattr(f"proxy.coordination.leader.{name}", 0.05)
    doing: list[str] = []
    begun: list[str] = []

    async def chore(name: str) -> None:
        begun.append(name)
        doing.append(name)
        try:
            await trio.sleep_forever()
        finally:
            doing.remove(name)

    async with AsyncExitStack() as stack:
        databases = [stack.enter_context(closing(connected(database_url))) for _ in range(2)]
        turns = [ClusterLeadership(each, "a chore") for each in databases]
        leading = await stack.enter_async_context(trio.open_nursery())
        leading.start_soon(as_leader, turns[0], partial(chore, "first"))
        await until(lambda: doing == ["first"])
        leading.start_soon(as_leader, turns[1], partial(chore, "second"))
        other = ClusterLeadership(databases[1], "another chore")
        assert await trio.to_thread.run_sync(other.take)
        other.give_up()
        # As after a cut: the server ends the connection, and the lock with it.
        taken = await trio.to_thread.run_sync(end_leaders, databases[1])
        assert taken >= 1  # the lock of the other chore may still be held
        # The first may be as quick as the second to take it again; either way it began anew.
        await until(lambda: len(begun) > 1 and len(doing) == 1)
        assert doing == begun[-1:]
        leading.cancel_scope.cancel()
    assert doing == []


def end_leaders(database: PostgresDatabase) -> int:
    """End the connections that hold an advisory lock for a chore; how many there were."""
    with database.reading() as rows:
        found = rows.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks"
            " WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    return int(found[0])


# The name of the served files


def test_the_name_is_there_while_all_of_a_machine_serve(tmp_path: Path) -> None:
    """Catches a name that stays for one that serves beside one that does not, and a dead one for
    which it is missing for good."""
    first, second = (ServedName(tmp_path, "images") for _ in range(2))
    for name in (first, second):
        name.is_watched = True
        name.enter()
    later = boot_clock() + 100
    first.extend(later)
    assert not first.path.is_symlink(), "the second does not serve"
    second.extend(later)
    assert os.readlink(first.path) == "images"
    second.withdraw()
    assert not first.path.is_symlink()
    first.extend(later)
    assert not first.path.is_symlink()
    second.extend(boot_clock() - 1)
    assert not first.path.is_symlink(), "its lease has ended"
    second.leave()
    first.extend(later)
    assert first.path.is_symlink()
    first.leave()
    assert not first.path.is_symlink()


def test_without_a_watcher_there_is_no_name(tmp_path: Path) -> None:
    """Catches files that nobody can take away should the process hang."""
    name = ServedName(tmp_path, "images")
    name.enter()
    name.extend(boot_clock() + 100)
    assert not name.path.is_symlink()
    name.leave()


def test_the_name_is_not_made_for_a_neighbour_without_a_watcher(tmp_path: Path) -> None:
    """Catches a neighbour that makes the name again for one that could not take it away."""
    first, second = (ServedName(tmp_path, "images") for _ in range(2))
    later = boot_clock() + 100
    for name in (first, second):
        name.enter()
    first.is_watched = True
    second.extend(later)
    first.extend(later)
    assert not first.path.is_symlink()
    second.is_watched = True
    second.extend(later)
    assert first.path.is_symlink()
    second.hide()
    first.extend(later)
    assert not first.path.is_symlink()
    for name in (first, second):
        name.leave()


@pytest.mark.parametrize("stops", ["withdraw", "hide", "enter"])
def test_one_that_stops_while_a_neighbour_makes_the_name_takes_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: str
) -> None:
    """Catches a name that is made after the one that stopped serving has looked for it."""
    first, second = (ServedName(tmp_path, "images") for _ in range(2))
    later = boot_clock() + 100
    symlink = os.symlink

    def late(target: str, path: Path) -> None:
        getattr(second, stops)()
        symlink(target, path)

    first.enter()
    if stops != "enter":
        second.enter()
        second.is_watched = True
        second.extend(later)
    first.is_watched = True
    monkeypatch.setattr(os, "symlink", late)
    first.extend(later)
    assert not first.path.is_symlink()
    for name in (first, second):
        name.leave()


async def test_the_watcher_takes_the_name_away_when_a_lease_ends_or_its_parent_does(
    tmp_path: Path,
) -> None:
    """Catches a name that a stopped or killed process leaves for nginx."""
    mark, name = tmp_path / "mark", tmp_path / "served"
    for ends in ("lease", "parent"):
        mark.write_bytes(int((boot_clock() + 1000) * 1e9).to_bytes(8, "big"))
        name.symlink_to("images")
        command = [sys.executable, "-I", "-S", watcher.__file__, str(mark), str(name)]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        async with process.stdin, process.stdout:
            assert await process.stdout.receive_some(1) == watcher.READY
            assert name.is_symlink()
            if ends == "lease":
                mark.write_bytes(int(boot_clock() * 1e9).to_bytes(8, "big"))
                await until(lambda: not name.is_symlink())
        assert await process.wait() == 0
        assert not name.is_symlink()


async def test_without_its_watcher_the_name_is_gone_until_there_is_another(
    tmp_path: Path, database_url: str, database: PostgresDatabase
) -> None:
    """Catches a name that stays where nothing could take it away any more."""
    name = ServedName(tmp_path, "images")
    members = Members(database, tmp_path, Lease(6), name)  # each renewal makes the name
    await trio.to_thread.run_sync(members.enter)
    async with trio.open_nursery() as nursery:
        listening = connected(database_url)
        nursery.start_soon(LeaseKeeper(members, listening, name).run, lambda: None)
        await trio.to_thread.run_sync(members.serve)
        await until(name.path.is_symlink)
        watchers = children_with("watcher.py")
        assert len(watchers) == 1
        for child in watchers:
            os.kill(child, signal.SIGTERM)  # of a stop of all processes: it goes on
            os.kill(child, signal.SIGKILL)
        await until(lambda: not name.path.is_symlink())
        await until(name.path.is_symlink)
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(members.leave)
    assert not name.path.is_symlink()


def children_with(word: str) -> list[int]:
    """The processes that this one has started, with ``word`` in their command."""
    threads = Path(f"/proc/{os.getpid()}/task").iterdir()
    found = [pid for each in threads for pid in (each / "children").read_text().split()]
    return [int(pid) for pid in found if word in Path(f"/proc/{pid}/cmdline").read_text()]


STOPPED = """
import sys, trio
from pathlib import Path
from proxy.coordination.cluster.keeper import LeaseKeeper
from proxy.coordination.cluster.lease import Lease
from proxy.coordination.cluster.members import Members
from proxy.coordination.cluster.served_name import ServedName
from proxy.shared.postgres import PostgresDatabase

async def main(url, folder):
    def connected():
        return PostgresDatabase(url, lock=1, patience=30)
    name = ServedName(folder, "images")
    members = Members(connected(), folder, Lease(3), name)
    await trio.to_thread.run_sync(members.enter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LeaseKeeper(members, connected(), name).run, lambda: None)
        await trio.to_thread.run_sync(members.note, 1)
        await trio.to_thread.run_sync(members.serve)

trio.run(main, sys.argv[1], Path(sys.argv[2]))
"""


async def test_a_process_that_is_stopped_loses_lease_and_name_and_nobody_waits_for_longer(
    tmp_path: Path, database_url: str, database: PostgresDatabase
) -> None:
    """Catches a name that only its own process takes away."""
    members = Members(database, tmp_path, Lease(600), None)
    await trio.to_thread.run_sync(members.enter)
    command = [sys.executable, "-c", STOPPED, database_url, str(tmp_path)]
    process = await trio.lowlevel.open_process(command)
    try:
        await until((tmp_path / "served").is_symlink)
        process.send_signal(signal.SIGSTOP)
        assert len(await trio.to_thread.run_sync(members.late, 2)) == 1
        await until(lambda: not (tmp_path / "served").is_symlink())
        await until(lambda: not members.late(2))
        process.send_signal(signal.SIGCONT)
        assert not (tmp_path / "served").is_symlink()
    finally:
        process.kill()
        await process.wait()
    members.leave()


def test_one_machine_imports_nothing_of_this(tmp_path: Path) -> None:
    """Catches a service of one machine that needs the extra, or pays for it at its start."""
    program = (
        "import sys, trio\n"
        "from proxy.config import Config\n"
        "from proxy.lifecycle import open_service\n"
        "import proxy.cli\n"
        "async def main():\n"
        "    config = {'cache': {'path': sys.argv[1]}, 'process': {'isolation': 'thread'}}\n"
        "    async with open_service(Config.model_validate(config)) as service:\n"
        "        assert service.blocks.problem is None\n"
        "trio.run(main)\n"
        "many = ('psycopg', 'proxy.moderation.cluster')\n"
        "found = [name for name in sys.modules if name.startswith(many)]\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "cache")], check=True)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kept.isdisjoint({"served", "leases", "cluster.json"})
