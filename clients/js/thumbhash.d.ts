/** The pixels of a ThumbHash in Base64, as `/info` has it: at most 32 each way, four bytes each (RGBA). */
export function thumbhashPixels(base64: string): {
  width: number;
  height: number;
  rgba: Uint8ClampedArray<ArrayBuffer>;
};

/** A canvas with these pixels, in browsers; its `toDataURL()` is a background. */
export function thumbhashCanvas(base64: string): HTMLCanvasElement;
