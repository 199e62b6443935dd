"""The JavaScript package: what it builds is what the Python builders build, and what is served."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from libipld import encode_cid

from proxy.config import Config, load_config
from proxy.errors import ImageProxyError
from proxy.imaging.thumbhash import average, thumbhash
from proxy.model.formats import OUTPUTS
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.keys import BlobKey, image_key
from proxy.model.presets import Size, place
from proxy.model.references import parse_actor
from proxy.urls import (
    blob_url,
    image_url,
    info_url,
    parse_actor_path,
    parse_poster_path,
    srcset,
)
from tests.documents import blocks, shell_lines
from tests.npm import installed, need_npm
from tests.processes import ROOT

pytestmark = pytest.mark.node

PACKAGE = ROOT / "clients/js"

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
CID = "bafkreihagr2cmvl2jt4mgx3sppwe2it3fwolkrbtjrhcnwjk4jdijhsoze"
BASE = "https://img.example/below"

CONFIGURED = {
    "IMAGE_PROXY_SERVER__BASE_URL": BASE,
    "IMAGE_PROXY_PRESETS__AVATAR__VARIANTS": "144,72",
    "IMAGE_PROXY_PRESETS__BANNER__VARIANTS": "320",
    "IMAGE_PROXY_PRESETS__CONTENT_FULL__VARIANTS": "400,800",
}

NO_HANDLES_BELOW = ("alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion")
"""What a configuration may let through is left to the server."""

Call = tuple[str, list[Any], Any, str]
"""A function of the package, its arguments, and its result, or the name of its error."""


def node(*arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        ["node", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project after the lines of the package's README, without a network."""
    need_npm()
    folder: Path = tmp_path_factory.mktemp("project")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    lines = shell_lines((PACKAGE / "README.md").read_text(encoding="utf-8"))
    assert [line.split()[0] for line in lines] == ["imageproxy", "npm", "npm"]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **CONFIGURED, "PATH": programs, "npm_config_offline": "true"}
    for line in lines:
        line = line.replace("./clients/js", str(PACKAGE))
        subprocess.run(
            ["sh", "-euc", line], cwd=folder, env=environment, check=True, capture_output=True
        )
    return folder


def test_the_package_has_what_it_needs_and_no_more(project: Path) -> None:
    """Catches a module that is not packed, a dependency, and a version of its own."""
    found = project / "node_modules/atproto-imageproxy"
    names = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    modules = {f"{name}.{kind}" for name in ("index", "unpic", "thumbhash") for kind in JS}
    assert names == {*modules, "package.json", "README.md", "LICENSE", "examples/react.tsx"}
    assert [each.name for each in found.parent.iterdir() if each.name[0] != "."] == [found.name]
    about = json.loads((found / "package.json").read_text())
    project_table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {name: about[name] for name in ("name", "version", "license")} == {
        name: project_table[name] for name in ("name", "version", "license")
    }
    assert f"{about['name']}-{about['version']}.tgz" in (PACKAGE / "README.md").read_text()
    assert (found / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


JS = ("js", "d.ts")


def test_the_first_lines_of_its_readme_run(project: Path) -> None:
    """Catches an example of names that there are not."""
    (code,) = blocks((PACKAGE / "README.md").read_text(encoding="utf-8"), "js")
    assert len(code.splitlines()) == 5
    (project / "readme.mjs").write_text(code)
    shown = node("readme.mjs", cwd=project)
    assert "https://img.example.com/avatar/alice.example.com@webp" in shown
    assert f"https://img.example.com/img/avatar/plain/{DID}/{CID}" in shown


def test_what_it_builds_is_what_the_python_builders_build(project: Path) -> None:
    """Catches a URL that is refused, a mistake that is let through, and a second spelling."""
    calls = list(vectors())
    path = project / "vectors.json"
    file = json.loads((project / "presets.json").read_text())
    path.write_text(json.dumps({"file": file, "base": f"{BASE}/", "calls": calls}))
    test = project / "vectors.test.mjs"
    test.write_text((Path(__file__).parent / "vectors.test.mjs").read_text())
    shown = node("--test", str(test), cwd=project, VECTORS=str(path))
    assert sum(map(int, re.findall(r"checked (\d+)", shown))) == len(calls)
    errors = {error for *_, error in calls}
    assert errors == {
        "", "InvalidPreset", "InvalidDid", "InvalidCid", "InvalidFormat", "InvalidHandle",
    }  # fmt: skip


def vectors() -> Iterator[Call]:
    """Calls of every function, with what the Python builders and parsers make of them."""
    config = load_config(environment=CONFIGURED)
    chance = random.Random(0)
    formats = [None, "jpg", *(each.value for each in OUTPUTS)]
    for preset in config.presets:
        yield from image_calls(config, preset, any_did(chance), any_cid(chance), formats)
    for _ in range(600):
        did, cid = any_did(chance), any_cid(chance)
        if chance.random() < 0.6:
            did = changed(chance, did)
        if chance.random() < 0.6:
            cid = changed(chance, cid)
        preset = chance.choice([*config.presets, "avatar_smal", "", "toString", "__proto__"])
        format_ = chance.choice([*formats, "bmp", "JPEG", ""])
        yield from image_calls(config, preset, did, cid, [format_])
        yield call("info", [did, cid], lambda did=did, cid=cid: info_url(blob(did, cid), BASE))
        yield call("blob", [did, cid], lambda did=did, cid=cid: blob_url(blob(did, cid), BASE))
        yield call("poster", [did, cid], lambda did=did, cid=cid: poster(config, did, cid))
        yield call(
            "poster",
            [did, cid, "banner"],
            lambda did=did, cid=cid: poster(config, did, cid, "banner"),
        )
    for _ in range(600):
        actor = any_actor(chance)
        if chance.random() < 0.5:
            actor = changed(chance, actor)
        if actor.rpartition(".")[2].lower() not in NO_HANDLES_BELOW:
            yield from actor_calls(config, actor)
    yield from transformer_calls(config)
    for _ in range(300):
        name = chance.choice([*config.presets])
        source = Size(chance.randint(1, 5000), chance.randint(1, 5000))
        size = place(config.presets[name], source).size
        box = config.presets[name].model_dump(mode="json")
        yield "sizeIn", [box, source._asdict()], size._asdict(), ""


def call(name: str, arguments: list[Any], make: Any) -> Call:
    try:
        return name, arguments, make(), ""
    except ImageProxyError as error:
        return name, arguments, None, type(error).__name__


def image_calls(
    config: Config, preset: str, did: str, cid: str, formats: list[str | None]
) -> Iterator[Call]:
    presets = config.presets

    def url(format_: str | None) -> str:
        return image_url(image_key(presets, preset, did, cid, format_), BASE)

    def widths(format_: str | None) -> str:
        return srcset(presets, preset, did, cid, format_, BASE)

    def img(format_: str | None) -> dict[str, Any]:
        found: dict[str, Any] = {"src": url(format_)}
        if presets[preset].variants:
            found |= {"srcset": widths(format_), "sizes": "9em"}
        source = Size(3000, 1999)
        return found | place(presets[preset], source).size._asdict()

    def picture() -> dict[str, Any]:
        best = ["webp"] if presets[preset].animated else ["avif", "webp"]
        return {
            "sources": [
                {"type": f"image/{each}", "srcset": widths(each), "sizes": "9em"} for each in best
            ],
            "img": img(None),
        }

    options = {"sizes": "9em", "source": {"width": 3000, "height": 1999}}
    for each in formats:
        given = [preset, did, cid] + ([] if each is None else [each])
        yield call("url", given, lambda each=each: url(each))
        yield call("srcset", given, lambda each=each: widths(each))
        more = options if each is None else options | {"format": each}
        yield call("img", [preset, did, cid, more], lambda each=each: url(each) and img(each))
    yield call("picture", [preset, did, cid, options], lambda: url(None) and picture())


def actor_calls(config: Config, actor: str) -> Iterator[Call]:
    for kind, preset, format_ in (("avatar", "avatar_w72", "webp"), ("banner", None, None)):

        def url(kind: str = kind, preset: str | None = preset, end: str | None = format_) -> str:
            name = quote(parse_actor(actor, own_names=True), safe=":")
            path = f"/{kind}/{f'{preset}/' if preset else ''}{name}{f'@{end}' if end else ''}"
            key = parse_actor_path(config.presets, unquote(path), own_names=True)
            assert (key.kind, key.preset, key.format) == (kind, preset, end)
            return BASE + path

        given = {"preset": preset, "format": format_} if preset else {}
        yield call(kind, [actor, given], url)
    yield call(
        "avatar", [actor, {"preset": "nosuch"}], lambda: image_key(config.presets, "nosuch", "", "")
    )


def transformer_calls(config: Config) -> Iterator[Call]:
    """What unpic asks of a picture of ``avatar``, which has widths of 72, 144 and 1000."""

    def url(preset: str, format_: str | None = None, did: str = DID) -> str:
        return image_url(image_key(config.presets, preset, did, CID, format_), BASE)

    for width, name in (
        (1, "avatar_w72"),
        (72, "avatar_w72"),
        ("73", "avatar_w144"),
        (145, "avatar"),
        (5000, "avatar"),
    ):
        for given in ("avatar", "avatar_w72"):
            yield "transformed", [url(given), {"width": width, "height": 9}], url(name), ""
            asked = {"width": width, "format": "avif"}
            yield "transformed", [url(given, "webp"), asked], url(name, "avif"), ""
            yield "transformed", [url(given, "webp"), {"width": width}], url(name, "webp"), ""
    yield "transformed", [url("avatar_w144"), {}], url("avatar_w144"), ""
    local = url("avatar", None, "did:web:localhost%3A2583")
    yield "transformed", [local, {"width": 5000}], local, ""
    others = (
        f"https://cdn.example{url('avatar').removeprefix(BASE)}",
        f"{BASE}/img/nosuch/plain/{DID}/{CID}",
        f"{BASE}/blob/{DID}/{CID}",
        "/logo.png",
    )
    for other in others:
        yield "transformed", [other, {"width": 72, "format": "webp"}], other, ""


def blob(did: str, cid: str) -> BlobKey:
    return BlobKey(parse_did(did), parse_cid(cid))


def poster(config: Config, did: str, cid: str, preset: str | None = None) -> str:
    key = blob(did, cid)
    named = f"{preset}/" if preset else ""
    path = f"/vid/{named}{quote(key.did, safe=':')}/{key.cid}/thumbnail.jpg"
    read = parse_poster_path(config.presets, "avatar", unquote(path))
    assert (read.blob, read.preset) == (key, preset or "avatar")
    return BASE + path


def any_did(chance: random.Random) -> str:
    return chance.choice(
        [
            "did:plc:" + "".join(chance.choices("abcdefghijklmnopqrstuvwxyz234567", k=24)),
            f"did:web:{any_name(chance)}",
            f"did:web:localhost%3A{chance.randint(1, 70_000)}",
            "did:web:localhost",
        ]
    )


def any_name(chance: random.Random) -> str:
    if chance.random() < 0.1:  # around the longest
        return f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * chance.randint(59, 63)}.example1com"
    letters = "abcxyz0189-"
    labels = ["".join(chance.choices(letters, k=chance.randint(1, 8))) for _ in range(3)]
    return ".".join(
        [*labels[: chance.randint(1, 3)], chance.choice(["com", "test", "x9", "a" * 63])]
    )


def any_actor(chance: random.Random) -> str:
    name = any_name(chance)
    marked = chance.choice([f"\u202a@{name}\u202c", f"{name}\u200e", f"\u00ad@{name}\u2060"])
    return chance.choice([name, f"@{name}", name.upper(), marked, any_did(chance), "k\u212a.com"])


def any_cid(chance: random.Random) -> str:
    if chance.random() < 0.1:  # most are of another hash
        return "Qm" + "".join(chance.choices("123456789ABCDEFGHJKLMNPQRSTUVWXYZabz", k=44))
    multihash = bytes([0x12, 32]) + chance.randbytes(32)
    before = chance.choice([b"\x01\x55", b"\x01\x55", b"\x01\x70", b"\x01\x71", b""])
    return str(encode_cid(before + multihash))


def changed(chance: random.Random, text: str) -> str:
    """``text`` with a letter more, less or another, most often at its end."""
    at = chance.choice([len(text) - 1, chance.randrange(len(text))])
    new = chance.choice("abez1278:%@./Q- ")
    return chance.choice([text[:at] + new + text[at + 1 :], text[:at] + text[at + 1 :], text + new])


def test_a_placeholder_that_it_decodes_has_the_colour_of_the_picture(project: Path) -> None:
    """Catches bands, halves of bytes or rows in another order."""
    left, right = (200, 40, 30, 255), (20, 60, 190, 255)
    rgba = bytes((*left, *right) * 32)
    hash_ = base64.b64encode(thumbhash(2, 32, rgba)).decode()
    code = (
        'import { thumbhashPixels } from "atproto-imageproxy/thumbhash";'
        f'const found = thumbhashPixels("{hash_}");'
        "console.log(JSON.stringify({ ...found, rgba: [...found.rgba] }));"
    )
    (project / "hash.mjs").write_text(code)
    found = json.loads(node("hash.mjs", cwd=project))
    pixels = np.array(found["rgba"], float).reshape(found["height"], found["width"], 4)
    expected = [255 * value for value in average(rgba)]
    assert pixels.mean((0, 1)) == pytest.approx(expected, abs=8)
    assert pixels[:, 0, 0].mean() > pixels[:, -1, 0].mean() + 60
    assert pixels[:, 0, 2].mean() < pixels[:, -1, 2].mean() - 60


# With TypeScript, React and unpic


@pytest.fixture(scope="module")
def typed(project: Path) -> Path:
    """The project with those beside the package."""
    modules = installed(Path(__file__).parent / "npm", "clients") / "node_modules"
    for each in (*modules.glob("@*/*"), *modules.glob("[!@]*")):
        place_of = project / "node_modules" / each.relative_to(modules)
        place_of.parent.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            place_of.symlink_to(each)
    (project / "react.tsx").write_text((PACKAGE / "examples/react.tsx").read_text())
    (project / "consumer.ts").write_text((modules.parent / "consumer.ts").read_text())
    return project


def tsc(folder: Path, *arguments: str) -> None:
    strict = ("--strict", "--target", "es2022", "--module", "nodenext", "--jsx", "react-jsx")
    more = ("--resolveJsonModule", "--skipLibCheck", "--preserveSymlinks")
    node("node_modules/typescript/bin/tsc", *strict, *more, *arguments, cwd=folder)


@pytest.mark.slow
@pytest.mark.time_limit(300)
def test_its_types_are_those_of_its_code_and_of_who_uses_it(typed: Path) -> None:
    """Catches a declaration of what there is not, and a preset that is spelled wrong."""
    tsc(typed, "--noEmit", "consumer.ts")
    sources = [f"node_modules/atproto-imageproxy/{name}.js" for name in ("index", "unpic")]
    tsc(typed, "--noEmit", "--allowJs", "--maxNodeModuleJsDepth", "1", "--checkJs", *sources)


@pytest.mark.slow
@pytest.mark.time_limit(300)
def test_its_example_in_react_renders(typed: Path) -> None:
    """Catches an attribute that React refuses, a width of unpic that there is no file of, and a
    picture of 16 x 10 pixels where its record says that this is its shape."""
    tsc(typed, "--outDir", "built", "react.tsx")
    code = f"""
        import {{ renderToStaticMarkup as render }} from "react-dom/server";
        import {{ createElement }} from "react";
        import {{ Avatar, Picture, WithUnpic }} from "./built/react.js";
        const blob = {{ did: "{DID}", cid: "{CID}", alt: "a" }};
        const picture = {{ ...blob, aspectRatio: {{ width: 16, height: 10 }} }};
        console.log(JSON.stringify([
          createElement(Avatar, {{ actor: "alice.example.com" }}),
          createElement(Picture, picture),
          createElement(WithUnpic, blob),
        ].map((each) => render(each))));
    """
    (typed / "render.mjs").write_text(code)
    avatar, picture, unpic = json.loads(node("render.mjs", cwd=typed))
    assert f'src="{BASE}/avatar/avatar_small/alice.example.com@webp"' in avatar
    webp = f"{BASE}/img/content_preview/plain/{DID}/{CID}@webp 800w"
    assert f'<source srcSet="{webp}" type="image/webp" sizes="600px"/>' in picture
    assert 'style="width:100%;max-width:600px;aspect-ratio:auto 16 / 10"' in picture
    assert 'width="16"' not in picture
    (candidates,) = re.findall(r'srcSet="([^"]*)"', unpic)
    assert [each.split() for each in candidates.split(",")] == [
        [f"{BASE}/img/banner_w320/plain/{DID}/{CID}@webp", "320w"],
        [f"{BASE}/img/banner/plain/{DID}/{CID}@webp", "640w"],
    ]


@pytest.mark.slow
@pytest.mark.time_limit(300)
def test_its_placeholders_are_those_of_the_reference_decoder(typed: Path) -> None:
    """Catches what an average does not show, such as a wave too few."""
    chance = random.Random(1)
    hashes = []
    for number in range(60):
        width, height = chance.randint(1, 60), chance.randint(1, 60)
        rgba = bytearray(chance.randbytes(width * height * 4))
        if number % 2:
            rgba[3::4] = b"\xff" * (width * height)
        hashes.append(base64.b64encode(thumbhash(width, height, bytes(rgba))).decode())
    code = f"""
        import {{ thumbHashToRGBA }} from "thumbhash";
        import {{ thumbhashPixels }} from "atproto-imageproxy/thumbhash";
        let worst = 0;
        for (const hash of {json.dumps(hashes)}) {{
          const theirs = thumbHashToRGBA(Buffer.from(hash, "base64"));
          const ours = thumbhashPixels(hash);
          if (theirs.w !== ours.width || theirs.h !== ours.height) throw new Error(hash);
          theirs.rgba.forEach((value, at) => {{
            worst = Math.max(worst, Math.abs(value - ours.rgba[at]));
          }});
        }}
        console.log(worst);
    """
    (typed / "reference.mjs").write_text(code)
    assert int(node("reference.mjs", cwd=typed)) <= 1, "they cut off what is rounded here"
