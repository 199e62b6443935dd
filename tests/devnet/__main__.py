"""``python -m tests.devnet install`` or ``run``: the network by hand, for development."""

import argparse
import io
import sys

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
    ensure_installed,
    run_devnet,
    set_profile,
    upload_blob,
)

PLC_PORT, PDS_PORT = 2582, 2583
"""Always the same, so that a proxy's configuration outlives a restart of the network."""


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


async def seed(devnet: Devnet) -> list[str]:
    """Fills an empty network with two accounts; returns the image paths of their pictures."""
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
    await create_post(devnet, bob, [noise])
    return paths


async def run() -> None:
    async with run_devnet(PLC_PORT, PDS_PORT) as devnet:
        paths = await seed(devnet)
        print(f"PLC  {devnet.plc_url}")
        print(f"PDS  {devnet.pds_url}  (admin password: {devnet.admin_password})")
        print("\nFor the proxy:")
        print(f"export IMAGE_PROXY_IDENTITY__PLC_URL={devnet.plc_url}")
        print("export IMAGE_PROXY_FETCH__ALLOW_HTTP=true")
        print("export IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS=true")
        print("\nPictures:", *paths, "\nCtrl-C stops the network.", sep="\n", flush=True)
        await trio.sleep_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.devnet", description=__doc__)
    parser.add_argument("command", choices=["install", "run"])
    command = parser.parse_args().command
    try:
        if command == "install":
            ensure_installed()
        else:
            trio.run(run)
    except DevnetUnavailable as error:
        sys.exit(f"devnet: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
