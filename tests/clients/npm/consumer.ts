// Held to the declarations by tsc, and run by nothing.
import { imageProxy, InvalidRequest, sizeIn, type ImageProxy, type PictureInfo } from "atproto-imageproxy";
import { thumbhashPixels } from "atproto-imageproxy/thumbhash";
import { unpicTransformer } from "atproto-imageproxy/unpic";
import presets from "./presets.json" with { type: "json" };

const images = imageProxy(presets);
const url: string = images.url("avatar", "did", "cid", "webp");
// @ts-expect-error: no preset of the file
images.url("avatar_smal", "did", "cid");
// @ts-expect-error: no format
images.url("avatar", "did", "cid", "bmp");
// @ts-expect-error: a path has one CID
images.blob("did");
const { sources, img } = images.picture("banner", "did", "cid", { formats: ["avif"], source: { width: 1, height: 1 } });
const width: number | undefined = img.width;
const types: string[] = sources.map(({ type }) => type);
const asFetched: ImageProxy = imageProxy(JSON.parse("{}"), { base: "" });
asFetched.avatar("alice.example.com", { preset: "any" });
const transformed: string = unpicTransformer(images)(new URL(url), { width: 72 });
const box: { width: number; height: number } = sizeIn(presets.presets.avatar, { width: 1, height: 1 });
const hash = (info: PictureInfo) => thumbhashPixels(info.thumbhash).rgba.length;
export const used = [width, types, transformed, box, hash, InvalidRequest];
