// A post's picture in React: by <picture>, by unpic, and with a placeholder that it fades over.
import { Image } from "@unpic/react/base";
import { imageProxy, type PictureInfo, type Size } from "atproto-imageproxy";
import { thumbhashCanvas } from "atproto-imageproxy/thumbhash";
import { unpicTransformer } from "atproto-imageproxy/unpic";
import { useEffect, useState } from "react";
// imageproxy presets --json > presets.json
import presets from "./presets.json" with { type: "json" };

const images = imageProxy(presets);
const transformer = unpicTransformer(images);

interface Props {
  did: string;
  cid: string;
  alt: string;
}

export function Avatar({ actor }: { actor: string }) {
  return <img src={images.avatar(actor, { preset: "avatar_small", format: "webp" })} width={36} height={36} alt="" />;
}

export function Picture({ did, cid, alt, aspectRatio }: Props & { aspectRatio?: Size }) {
  const { sources, img } = images.picture("content_preview", did, cid, { sizes: "600px" });
  const { srcset, ...rest } = img;
  // That of a record is a shape in no unit, such as 16 to 9, and may be approximate.
  const shape = aspectRatio && { aspectRatio: `auto ${aspectRatio.width} / ${aspectRatio.height}` };
  return (
    <picture>
      {sources.map(({ srcset, ...each }) => <source key={each.type} srcSet={srcset} {...each} />)}
      <img srcSet={srcset} {...rest} alt={alt} loading="lazy" style={{ width: "100%", maxWidth: 600, ...shape }} />
    </picture>
  );
}

export function WithUnpic({ did, cid, alt }: Props) {
  return (
    <Image
      src={images.url("banner", did, cid, "webp")}
      transformer={transformer}
      breakpoints={images.widths("banner")}
      layout="constrained"
      width={640}
      height={300}
      alt={alt}
    />
  );
}

export function Fading({ did, cid, alt }: Props) {
  const [info, setInfo] = useState<PictureInfo>();
  const [loaded, setLoaded] = useState(false);
  useEffect(() => {
    const stop = new AbortController();
    fetch(images.info(did, cid), { signal: stop.signal })
      .then((answer) => answer.json())
      .then(setInfo, () => {}); // the picture comes without it
    return () => stop.abort();
  }, [did, cid]);
  if (!info) return null;
  const isHidden = loaded && info.alpha; // it would show through
  return (
    <div
      style={{
        aspectRatio: `${info.width} / ${info.height}`,
        background: isHidden ? "none" : `0 0 / 100% 100% url(${thumbhashCanvas(info.thumbhash).toDataURL()}) ${info.color}`,
      }}
    >
      <img
        src={images.url("content_preview", did, cid, "webp")}
        alt={alt}
        onLoad={() => setLoaded(true)}
        style={{ width: "100%", display: "block", opacity: loaded ? 1 : 0, transition: "opacity 0.4s" }}
      />
    </div>
  );
}
