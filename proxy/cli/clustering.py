"""``imageproxy cluster``."""

from __future__ import annotations

from contextlib import closing

import click

from proxy.cli.common import Context, in_folder, refuse, with_config
from proxy.cli.helping import example
from proxy.cli.output import Output, with_output


@click.group()
def cluster() -> None:
    """Share decisions between machines, in PostgreSQL."""


@cluster.command("import", epilog=example("cluster import --config /etc/imageproxy.toml"))
@with_output
@with_config
def cluster_import(context: Context, output: Output) -> None:
    """Copy the decisions of this cache folder into the database of cluster.database.

    Blocks, audit, purges, cursors, the CDN's queue and labels; all of it or nothing. Into an empty
    database, or one that has them already. Stop the servers of the folder first.
    """
    settings = context.load(to_serve=True)
    if not settings.cluster.url:
        refuse("cluster.database is not set: it says where to")
    # Imported late: it needs an extra.
    from proxy.moderation.cluster.importing import CannotImport, import_folder
    from proxy.moderation.cluster.parts import database_of
    from proxy.shared.postgres import place_of

    place, folder = place_of(settings.cluster.url), settings.cache.path
    with in_folder(settings), closing(database_of(settings, "decisions")) as target:
        try:
            imported = import_folder(folder, target)
        except CannotImport as error:
            refuse(str(error))
    rows = imported.rows
    found = f"{rows['blocks']} blocks and {rows['audit']} decisions of {folder}"
    done = (
        f"{found} imported into {place}" if imported.is_new else f"{found} are in {place} already"
    )
    output.report({"folder": str(folder), "is_new": imported.is_new, "rows": rows}, done)
