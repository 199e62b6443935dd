// URLs of an image proxy, from the file that `imageproxy presets --json` prints. docs/urls.md has the grammar.
// @ts-check

/** @typedef {import("./index.js").Preset} Preset */

export class InvalidRequest extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = new.target.name;
  }
}
export class InvalidPreset extends InvalidRequest {}
export class InvalidDid extends InvalidRequest {}
export class InvalidCid extends InvalidRequest {}
export class InvalidFormat extends InvalidRequest {}
export class InvalidHandle extends InvalidRequest {}

const LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";
const NAME = `(?:${LABEL}\\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?`;
const HANDLE = new RegExp(`^${NAME}$`);
const PLC = /^did:plc:[a-z2-7]{24}$/;
const WEB = new RegExp(`^did:web:(${NAME}|localhost)$`);
const WEB_PORT = /^did:web:localhost%3A([1-9][0-9]{0,4})$/;
const LONGEST_NAME = 253;

// CIDv1 of raw bytes or DAG-PB, sha2-256; the last letter has two bits that are 0.
const CID_V1 = /^baf(?:krei|ybei)[a-h][a-z2-7]{50}[aeimquy4]$/;
const CID_V0 = /^Qm[1-9A-HJ-NP-Za-km-z]{44}$/;
const BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

// Marks of writing direction, and spaces without width, which apps copy with a handle.
const INVISIBLE = /[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u00ad\u061c\u2060\ufeff]/g;

/** @param {unknown} did */
function checkedDid(did) {
  const text = String(did);
  const isWeb = WEB.test(text) && text.length - "did:web:".length <= LONGEST_NAME;
  const port = WEB_PORT.exec(text);
  if (PLC.test(text) || isWeb || (port && Number(port[1]) <= 65535)) return text;
  throw new InvalidDid(`no DID in its canonical spelling: ${shown(text)}`);
}

/** @param {unknown} cid */
function checkedCid(cid) {
  const text = String(cid);
  if (CID_V1.test(text) || (CID_V0.test(text) && isSha256(text))) return text;
  throw new InvalidCid(`no CID of a blob in its canonical spelling: ${shown(text)}`);
}

/** @param {string} text in base58 */
function isSha256(text) {
  const value = [...text].reduce((sum, digit) => sum * 58n + BigInt(BASE58.indexOf(digit)), 0n);
  return value >> 256n === 0x1220n;
}

/** @param {unknown} actor */
function checkedActor(actor) {
  const text = String(actor).replace(INVISIBLE, "");
  if (text.startsWith("did:")) return checkedDid(text);
  const name = text.replace(/^@/, "");
  // Before it is in lower case: the Kelvin sign becomes a letter of ASCII.
  const handle = /^[\x21-\x7e]+$/.test(name) ? name.toLowerCase() : "";
  if (HANDLE.test(handle) && handle.length <= LONGEST_NAME) return handle;
  throw new InvalidHandle(`neither a handle nor a DID: ${shown(text)}`);
}

/** @param {string} text */
const shown = (text) => JSON.stringify(text.slice(0, 96));

// The server decodes a path once.
/** @param {string} text */
const escaped = (text) => text.replaceAll("%", "%25");

/** @param {number} numerator @param {number} denominator */
const halfUp = (numerator, denominator) => Math.max(1, Math.floor((2 * numerator + denominator) / (2 * denominator)));

/** @type {typeof import("./index.js").sizeIn} */
export function sizeIn(preset, source) {
  const { width, height, fit } = preset;
  if (fit === "cover") return { width, height };
  if (source.width <= width && source.height <= (height || source.height)) {
    return { width: source.width, height: source.height };
  }
  return height === 0 || source.width * height >= source.height * width
    ? { width, height: halfUp(source.height * width, source.width) }
    : { width: halfUp(source.width * height, source.height), height };
}

/** @param {any} file @param {unknown} base */
function missingIn(file, base) {
  const isThere = {
    presets: typeof file?.presets === "object" && file.presets !== null,
    formats: Array.isArray(file?.formats),
    "base_url (or the option base)": typeof (base ?? file?.base_url) === "string",
  };
  return Object.entries(isThere).flatMap(([name, found]) => (found ? [] : [name]));
}

/** @type {typeof import("./index.js").imageProxy} */
export function imageProxy(file, options = {}) {
  const missing = missingIn(file, options?.base);
  if (missing.length) {
    throw new TypeError(`imageProxy() takes what \`imageproxy presets --json\` prints; this lacks ${missing.join(", ")}`);
  }
  const base = (options.base ?? file.base_url).replace(/\/+$/, "");
  /** @type {Record<string, Preset>} */
  const presets = file.presets;

  /** @param {string} name */
  function presetOf(name) {
    if (Object.hasOwn(presets, name)) return presets[name];
    throw new InvalidPreset(`no preset ${shown(String(name))}; there are ${Object.keys(presets).join(", ")}`);
  }
  /** @param {string | null | undefined} format */
  function suffixOf(format) {
    if (format === undefined || format === null) return "";
    const known = format === "jpg" ? "jpeg" : format;
    if (file.formats.includes(known)) return `@${known}`;
    throw new InvalidFormat(`no format ${shown(String(format))}; there are ${file.formats.join(", ")}`);
  }
  /** @param {string} preset @param {string} did @param {string} cid @param {string | null} [format] */
  function url(preset, did, cid, format) {
    presetOf(preset);
    return `${base}/img/${preset}/plain/${escaped(checkedDid(did))}/${checkedCid(cid)}${suffixOf(format)}`;
  }
  /** @param {string} preset */
  function candidates(preset) {
    const { width, variants } = presetOf(preset);
    return [{ name: preset, width }, ...variants.map((each) => ({ name: `${preset}_w${each}`, width: each }))]
      .sort((one, other) => one.width - other.width);
  }
  /** @param {string} preset @param {string} did @param {string} cid @param {string | null} [format] */
  function srcset(preset, did, cid, format) {
    return candidates(preset).map(({ name, width }) => `${url(name, did, cid, format)} ${width}w`).join(", ");
  }
  /** @param {string} preset @param {string} did @param {string} cid @param {import("./index.js").ImgOptions} [given] */
  function img(preset, did, cid, { format, sizes, source } = {}) {
    const settings = presetOf(preset);
    return {
      src: url(preset, did, cid, format),
      ...(settings.variants.length > 0 && { srcset: srcset(preset, did, cid, format) }),
      ...(settings.variants.length > 0 && sizes && { sizes }),
      // Without the size of the source, that of a result of "contain" is not known.
      ...((source || settings.fit === "cover") && sizeIn(settings, source ?? settings)),
    };
  }
  /** @param {string} preset @param {string} did @param {string} cid @param {import("./index.js").PictureOptions} [given] */
  function picture(preset, did, cid, { formats, sizes, source } = {}) {
    // An AVIF is the first frame of what moves.
    const wanted = formats ?? ["avif", "webp"].filter((each) => each !== "avif" || !presetOf(preset).animated);
    return {
      sources: wanted.map((format) => ({
        type: `image/${suffixOf(format).slice(1)}`,
        srcset: srcset(preset, did, cid, format),
        ...(sizes && { sizes }),
      })),
      img: img(preset, did, cid, { sizes, source }),
    };
  }
  /** @param {string} kind @param {string} actor @param {import("./index.js").ActorOptions<string>} [given] */
  function byName(kind, actor, { preset, format } = {}) {
    if (preset !== undefined) presetOf(preset);
    const named = preset === undefined ? "" : `${preset}/`;
    return `${base}/${kind}/${named}${escaped(checkedActor(actor))}${suffixOf(format)}`;
  }
  /** @param {string} did @param {string} cid */
  const blobPath = (did, cid) => `${escaped(checkedDid(did))}/${checkedCid(cid)}`;

  return Object.freeze({
    base,
    presets: file.presets,
    url,
    srcset,
    img,
    picture,
    /** @param {string} preset */
    widths: (preset) => candidates(preset).map(({ width }) => width),
    /** @param {string} actor @param {import("./index.js").ActorOptions<string>} [given] */
    avatar: (actor, given) => byName("avatar", actor, given),
    /** @param {string} actor @param {import("./index.js").ActorOptions<string>} [given] */
    banner: (actor, given) => byName("banner", actor, given),
    /** @param {string} did @param {string} cid */
    info: (did, cid) => `${base}/info/${blobPath(did, cid)}`,
    /** @param {string} did @param {string} cid */
    blob: (did, cid) => `${base}/blob/${blobPath(did, cid)}`,
    /** @param {string} did @param {string} cid @param {string} [preset] */
    poster(did, cid, preset) {
      if (preset !== undefined) presetOf(preset);
      return `${base}/vid/${preset === undefined ? "" : `${preset}/`}${blobPath(did, cid)}/thumbnail.jpg`;
    },
  });
}
