import type { ImageProxy } from "./index.js";

/** What unpic asks for; height and quality are those of the preset. */
export interface ImageProxyOperations {
  width?: number | string;
  height?: number | string;
  format?: "jpeg" | "jpg" | "png" | "webp" | "avif" | (string & {});
  quality?: number | string;
}

/**
 * A transformer for `@unpic/react/base`, `@unpic/vue/base` and the others: of a URL that `images` built, the
 * narrowest variant of its preset that is wide enough, or the widest. Other URLs stay as they are.
 * `breakpoints={images.widths(preset)}` has the component ask for the widths that there are.
 */
export function unpicTransformer(
  images: ImageProxy,
): (src: string | URL, operations?: ImageProxyOperations) => string;
