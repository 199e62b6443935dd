// A transformer for the components of unpic (https://unpic.pics).
// @ts-check

/** @type {typeof import("./unpic.js").unpicTransformer} */
export function unpicTransformer(images) {
  const { presets } = images;
  const path = /^(.*)\/img\/([a-z0-9_]+)\/plain\/([^/@]+)\/([^/@]+)(?:@([a-z]+))?$/;
  return (src, { width, format } = {}) => {
    const found = path.exec(String(src));
    // A picture of another place stays as it is.
    if (!found || found[1] !== images.base || !Object.hasOwn(presets, found[2])) return String(src);
    const [, , preset, did, cid, own] = found;
    const parent = Object.keys(presets).find((name) =>
      presets[name].variants.some((each) => `${name}_w${each}` === preset)) ?? preset;
    const widths = images.widths(parent);
    const wanted = Number(width ?? presets[preset].width);
    const chosen = widths.find((each) => each >= wanted) ?? widths[widths.length - 1];
    const name = chosen === presets[parent].width ? parent : `${parent}_w${chosen}`;
    const known = /** @type {import("./index.js").Format | undefined} */ (format ?? own);
    return images.url(name, decodeURIComponent(did), cid, known);
  };
}
