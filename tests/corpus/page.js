// What runs in the page: it shows files as a page does, and reads the pixels back as sRGB.
// Files that are described are kept until the next ones are.
let kept = [];
let read = new Uint8Array();

async function describe(files) {
  for (const file of kept) {
    file.decoder?.close();
    if (file.url) URL.revokeObjectURL(file.url);
  }
  kept = [];
  const found = [];
  for (const { data, type } of files) {
    const file = { bytes: Uint8Array.fromBase64(data) };
    kept.push(file);
    file.url = URL.createObjectURL(new Blob([file.bytes], { type }));
    found.push(await describeOne(file, type));
  }
  return found;
}

async function describeOne(file, type) {
  const image = new Image();
  const shown = await new Promise((resolve) => {
    image.onload = () => resolve(true);
    image.onerror = () => resolve(false);
    image.src = file.url;
  });
  if (!shown || !image.naturalWidth) return null;
  file.image = image;
  const found = { width: image.naturalWidth, height: image.naturalHeight, whole: false,
                  durations: [], loops: 0 };
  try {
    const decoder = new ImageDecoder({ data: file.bytes, type });
    file.decoder = decoder;
    await Promise.all([decoder.completed, decoder.tracks.ready]);
    const track = decoder.tracks.selectedTrack;
    if (track.frameCount > 1) {
      for (let index = 0; index < track.frameCount; index++) {
        const { image: frame } = await decoder.decode({ frameIndex: index });
        found.durations.push(frame.duration / 1000);
        frame.close();
      }
      // JSON has no infinity.
      found.loops = Number.isFinite(track.repetitionCount) ? track.repetitionCount : -1;
    } else {
      (await decoder.decode()).image.close();
    }
    found.whole = true;
  } catch (error) {
    found.complaint = String(error);
  }
  return found;
}

// Draws frames of files, [[file, [frame, ...]], ...], and says how many bytes `part` has of them.
async function draw(wanted) {
  const parts = [];
  for (const [index, frames] of wanted) {
    const { image, decoder } = kept[index];
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    for (const frame of frames) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      if (frame === null) {
        context.drawImage(image, 0, 0);
      } else {
        const result = await decoder.decode({ frameIndex: frame });
        context.drawImage(result.image, 0, 0);
        result.image.close();
      }
      parts.push(context.getImageData(0, 0, canvas.width, canvas.height).data);
    }
  }
  read = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    read.set(part, at);
    at += part.length;
  }
  return read.length;
}

function part([start, end]) {
  return read.subarray(start, end).toBase64();
}
