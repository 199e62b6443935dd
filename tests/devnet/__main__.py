"""A PLC directory and a PDS on loopback, with two accounts and their pictures, until Ctrl-C."""

import argparse
import errno
import io
import signal
import sys
from dataclasses import dataclass

import trio
from PIL import Image

from tests.devnet import (
    Account,
    Blob,
    Devnet,
    DevnetUnavailable,
    blob_cid,
    create_account,
    create_post,
    create_record,
    ensure_installed,
    post_with,
    run_devnet,
    set_profile,
    upload_blob,
)
from tests.fakes.dns import serving_dns

PROXY_URL = "http://127.0.0.1:8080"
"""Where a proxy serves by default."""


QUOTING = "3m2gallery2a2"
"""Record key of a post with a gallery that quotes another: an example of the page."""


def gradient(width: int, height: int) -> Image.Image:
    """A picture in RGB in which a flip, a turn or a wrong crop would show."""
    ramp = Image.linear_gradient("L")
    bands = (ramp, ramp.rotate(90), Image.radial_gradient("L"))
    return Image.merge("RGB", bands).resize((width, height))


def encoded(image: Image.Image, format: str) -> bytes:
    out = io.BytesIO()
    image.save(out, format)
    return out.getvalue()


def noise_png(width: int, height: int) -> bytes:
    """Noise that fades to transparent."""
    image = Image.effect_noise((width, height), 60).convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize((width, height)))
    return encoded(image, "PNG")


def animated_gif(size: int, frames: int) -> bytes:
    """A gradient that turns."""
    first, *rest = (gradient(size, size).rotate(360 * i / frames) for i in range(frames))
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=rest, duration=80, loop=0)
    return out.getvalue()


@dataclass(frozen=True)
class Seeded:
    """What :func:`seed` made.

    Attributes:
        accounts: DIDs by handle.
        paths: of images, one of each picture.
    """

    accounts: dict[str, str]
    paths: list[str]


async def seed(devnet: Devnet) -> Seeded:
    """Fills an empty network with two accounts and their pictures."""
    paths = []

    async def upload(account: Account, preset: str, data: bytes, mime: str) -> Blob:
        blob = await upload_blob(devnet, account, data, mime)
        paths.append(f"/img/{preset}/plain/{account.did}/{blob_cid(blob)}")
        return blob

    alice = await create_account(devnet, "alice.test")
    avatar = await upload(alice, "avatar", encoded(gradient(1200, 1200), "PNG"), "image/png")
    banner = await upload(alice, "banner", encoded(gradient(1500, 500), "JPEG"), "image/jpeg")
    await set_profile(devnet, alice, avatar, banner)
    photo = await upload(alice, "content_full", encoded(gradient(3000, 2000), "JPEG"), "image/jpeg")
    moving = await upload(alice, "content_full", animated_gif(240, 12), "image/gif")
    await create_post(devnet, alice, [photo, moving])

    bob = await create_account(devnet, "bob.test")
    avatar = await upload(bob, "avatar", encoded(gradient(400, 600), "JPEG"), "image/jpeg")
    await set_profile(devnet, bob, avatar)
    noise = await upload(bob, "content_preview", noise_png(900, 600), "image/png")
    posted = await create_post(devnet, bob, [noise])
    items = [{"image": photo, "alt": "A gradient"}, {"image": moving, "alt": "It turns"}]
    embed = {
        "$type": "app.bsky.embed.recordWithMedia",
        "record": {"$type": "app.bsky.embed.record", "record": {"uri": posted}},
        "media": {"$type": "app.bsky.embed.gallery", "items": items},
    }
    await create_record(devnet, alice, post_with(embed), QUOTING)
    return Seeded({account.handle: account.did for account in (alice, bob)}, paths)


def directions(devnet: Devnet, nameserver: str, seeded: Seeded) -> str:
    """Where everything is, and what to type to see it."""
    variables = {
        "IDENTITY__PLC_URL": devnet.plc_url,
        "IDENTITY__NAMESERVERS": nameserver,
        "FETCH__ALLOW_HTTP": "true",
        "FETCH__ALLOW_PRIVATE_HOSTS": "true",
    }
    handles = seeded.accounts
    lines = [
        f"PLC  {devnet.plc_url}",
        f"PDS  {devnet.pds_url}  (admin password: {devnet.admin_password})",
        f"DNS  {nameserver}  (what the handles stand for)",
        "",
        *(f"{handle:<10}  {did}" for handle, did in handles.items()),
        "",
        "A proxy for it, from a second terminal in the same folder:",
        "",
        *(f"IMAGE_PROXY_{name}={value} \\" for name, value in variables.items()),
        "./run serve",
        "",
        "Then, in a browser:",
        "",
        *(f"{PROXY_URL}/#q={handle}" for handle in handles),
        *(f"{PROXY_URL}/avatar/{handle}" for handle in handles),
        *(PROXY_URL + path for path in seeded.paths),
        "",
        "Ctrl-C stops the network.",
    ]
    return "\n".join(lines)


async def ensure_free(port: int, option: str) -> None:
    """Says now, and by the option's name, what Node.js would say later with a stack trace.

    Raises:
        DevnetUnavailable: somebody listens on that port of 127.0.0.1.
    """
    try:
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise DevnetUnavailable(f"port {port}: {error.strerror}") from None
        raise DevnetUnavailable(f"port {port} is taken; {option} N chooses another") from None
    await listener.aclose()


async def run(plc_port: int, pds_port: int) -> None:
    await ensure_free(plc_port, "--plc-port")
    await ensure_free(pds_port, "--pds-port")
    async with run_devnet(plc_port, pds_port) as devnet, serving_dns() as dns:
        seeded = await seed(devnet)
        dns.records |= {f"_atproto.{name}": [f"did={did}"] for name, did in seeded.accounts.items()}
        # By a receiver: an interrupt could be raised where it is lost.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            print(directions(devnet, dns.address, seeded), flush=True)
            await anext(signals)


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 0xFFFF:
        raise ValueError(number)
    return number


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run devnet", description=__doc__)
    parser.add_argument("command", choices=["install", "run"], nargs="?", default="run")
    about = "to listen on, on 127.0.0.1 (default: a free one)"
    parser.add_argument("--plc-port", type=port, default=0, metavar="N", help=about)
    parser.add_argument("--pds-port", type=port, default=0, metavar="N", help=about)
    given = parser.parse_args()
    try:
        if given.command == "install":
            ensure_installed()
        else:
            run_until_interrupted(given.plc_port, given.pds_port)
    except DevnetUnavailable as error:
        sys.exit(f"devnet: {error}")


def run_until_interrupted(plc_port: int, pds_port: int) -> None:
    # A nursery may have put the interrupt into a group.
    try:
        trio.run(run, plc_port, pds_port)
    except* KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
