/** What a preset gives. With a height of 0 only the width counts. */
export interface Preset {
  readonly width: number;
  readonly height: number;
  /** `cover` fills the box and crops; `contain` fits inside, and never enlarges. */
  readonly fit: "cover" | "contain" | (string & {});
  readonly quality: number;
  readonly animated: boolean;
  /** Further widths; each is a preset named `{preset}_w{width}`. */
  readonly variants: readonly number[];
}

/** What `imageproxy presets --json` prints. */
export interface PresetsFile<Name extends string = string> {
  readonly base_url: string;
  readonly formats: readonly string[];
  readonly presets: Readonly<Record<Name, Preset>>;
}

export type Format = "jpeg" | "jpg" | "png" | "webp" | "avif";

/** Pixels. */
export interface Size {
  readonly width: number;
  readonly height: number;
}

export interface ImgOptions {
  /** Without one the format follows the source. */
  format?: Format;
  /** How wide the picture is shown, for the choice among several widths. */
  sizes?: string;
  /** The size of the original in pixels, as of `/info`: it gives width and height. A record's `aspectRatio` has no unit. */
  source?: Size;
}

export interface PictureOptions extends Omit<ImgOptions, "format"> {
  /** The best first: AVIF and WebP; for presets that keep animations only WebP. */
  formats?: readonly Format[];
}

/** Attributes of an `<img>`, in lower case as HTML has them. */
export interface ImgAttributes {
  src: string;
  srcset?: string;
  sizes?: string;
  width?: number;
  height?: number;
}

/** Attributes of a `<source>`. */
export interface SourceAttributes {
  type: string;
  srcset: string;
  sizes?: string;
}

export interface ActorOptions<Name extends string> {
  preset?: Name;
  format?: Format;
}

/** Builds URLs. Each function throws an `InvalidRequest` for the first part that the server would refuse. */
export interface ImageProxy<Name extends string = string> {
  /** The public URL before each path. */
  readonly base: string;
  readonly presets: Readonly<Record<Name, Preset>>;
  url(preset: Name, did: string, cid: string, format?: Format): string;
  /** A preset and its variants, narrowest first. */
  srcset(preset: Name, did: string, cid: string, format?: Format): string;
  img(preset: Name, did: string, cid: string, options?: ImgOptions): ImgAttributes;
  /** The `<source>`s of a `<picture>`, and the `<img>` in it. */
  picture(
    preset: Name,
    did: string,
    cid: string,
    options?: PictureOptions,
  ): { sources: SourceAttributes[]; img: ImgAttributes };
  /** The widths of a preset and its variants, narrowest first. */
  widths(preset: Name): number[];
  /** The current picture of an account, by handle or DID. */
  avatar(actor: string, options?: ActorOptions<Name>): string;
  banner(actor: string, options?: ActorOptions<Name>): string;
  /** JSON about a picture: `PictureInfo`. */
  info(did: string, cid: string): string;
  /** The original. */
  blob(did: string, cid: string): string;
  /** A JPEG of a video. */
  poster(did: string, cid: string, preset?: Name): string;
}

/** What `/info/{did}/{cid}` answers. */
export interface PictureInfo extends Size {
  readonly type: string;
  readonly bytes: number;
  readonly animated: boolean;
  readonly frames: number;
  readonly alpha: boolean;
  readonly thumbhash: string;
  readonly color: string;
}

/**
 * @param file what `imageproxy presets --json` prints.
 * @param options `base`: the public URL, where it is not that of the file.
 */
export function imageProxy<Name extends string>(
  file: PresetsFile<Name>,
  options?: { base?: string },
): ImageProxy<Name>;

/** The size that a preset gives a picture. */
export function sizeIn(preset: Preset, source: Size): Size;

export class InvalidRequest extends Error {}
export class InvalidPreset extends InvalidRequest {}
export class InvalidDid extends InvalidRequest {}
export class InvalidCid extends InvalidRequest {}
export class InvalidFormat extends InvalidRequest {}
export class InvalidHandle extends InvalidRequest {}
