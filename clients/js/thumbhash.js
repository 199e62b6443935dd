// Made by ./run docs from proxy/web/thumbhash.js.
// The pixels of a ThumbHash (evanw.github.io/thumbhash): at most 32 each way, RGBA.
export function thumbhashPixels(base64) {
  const hash = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const head = hash[0] | (hash[1] << 8) | (hash[2] << 16), size = hash[3] | (hash[4] << 8);
  const seeThrough = Boolean(head >> 23), isWide = Boolean(size >> 15);
  const most = seeThrough ? 5 : 7, least = size & 7;
  const [across, down] = isWide ? [most, least] : [least, most];
  let at = (seeThrough ? 6 : 5) * 2; // in nibbles, the low half of a byte first
  const next = () => ((hash[at >> 1] >> ((at++ & 1) * 4)) & 15) / 7.5 - 1;
  // The waves of a channel below a diagonal; that of (0, 0) is its average.
  function waves(average, scale, columns, rows) {
    const found = [{ x: 0, y: 0, height: average }];
    for (let y = 0; y < rows; y++) {
      for (let x = y ? 0 : 1; x * rows < columns * (rows - y); x++) {
        found.push({ x, y, height: next() * scale * 2 });
      }
    }
    return found;
  }
  // A quarter more colour, as the published decoder has it.
  const light = waves((head & 63) / 63, ((head >> 18) & 31) / 31, Math.max(3, across), Math.max(3, down));
  const yellow = waves(((head >> 6) & 63) / 31.5 - 1, ((size >> 3) & 63) / 63 * 1.25, 3, 3);
  const reddish = waves(((head >> 12) & 63) / 31.5 - 1, ((size >> 9) & 63) / 63 * 1.25, 3, 3);
  const alpha = seeThrough ? waves((hash[5] & 15) / 15, (hash[5] >> 4) / 15, 5, 5) : [{ x: 0, y: 0, height: 1 }];

  const longest = 32 / Math.max(across, down);
  const width = Math.round(across * longest), height = Math.round(down * longest);
  const rgba = new Uint8ClampedArray(width * height * 4);
  for (let row = 0, index = 0; row < height; row++) {
    for (let column = 0; column < width; column++, index += 4) {
      const sum = (found) => found.reduce((total, wave) => total + wave.height
        * Math.cos(Math.PI / width * (column + 0.5) * wave.x) * Math.cos(Math.PI / height * (row + 0.5) * wave.y), 0);
      const l = sum(light), p = sum(yellow), q = sum(reddish);
      const blue = l - 2 / 3 * p, red = (3 * l - blue + q) / 2;
      [red, red - q, blue, sum(alpha)].forEach((value, band) => { rgba[index + band] = Math.max(0, 255 * Math.min(1, value)); });
    }
  }
  return { width, height, rgba };
}
// A canvas with these pixels; in browsers only.
export function thumbhashCanvas(base64) {
  const { width, height, rgba } = thumbhashPixels(base64);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  return canvas;
}
