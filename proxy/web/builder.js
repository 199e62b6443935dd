  // Builds <img> and <picture> for a width on somebody's page, of the presets that this picture has.
  const [builder, wanted, shape, built, builtNote] = ["builder", "wanted", "shape", "built", "built-note"].map(by);
  const divisor = (a, b) => (b ? divisor(b, a % b) : a);

  // All that shows the whole picture is alike, whatever its box; of the rest what has one shape.
  const WHOLE = "the whole picture";
  function shapeOf({ width, height, kind }) {
    if (kind.startsWith("contain")) return WHOLE;
    const common = divisor(width, height);
    return `cropped to ${width / common} : ${height / common}`;
  }
  // A crop to the picture's own shape shows all of it, as of an avatar that is a square; unless it enlarges it.
  function isWhole({ width, height }, made) {
    const widest = made.filter(({ preset }) => shapeOf(preset) === WHOLE).sort((a, b) => b.width - a.width)[0];
    return widest && width <= widest.width && height === Math.round(width * widest.height / widest.width);
  }
  // Results of one shape, narrowest first, each width once; of what moves, those that move.
  function ladder(made, wantedShape, isMoving) {
    const alikes = made.filter((each) => shapeOf(each.preset) === wantedShape || (wantedShape === WHOLE && isWhole(each, made)));
    const moving = alikes.filter(({ preset }) => preset.kind.endsWith("True"));
    const sorted = (isMoving && moving.length ? moving : alikes).sort((a, b) => a.width - b.width);
    return sorted.filter(({ width }, index) => width !== sorted[index - 1]?.width);
  }
  // The markup for a width: {img, picture, note}. urlOf makes a URL of a preset's name and a format, "" for none.
  function markup(rungs, width, { alt, formats, urlOf }) {
    const enough = rungs.findIndex((rung) => rung.width >= 2 * width);
    const used = enough < 0 ? rungs : rungs.slice(0, enough + 1);
    const widest = used.at(-1);
    const plain = used.find((rung) => rung.width >= width) ?? widest;
    const sizes = used.length > 1 ? ` sizes="(max-width: ${width}px) 100vw, ${width}px"` : "";
    const srcset = (format) => (used.length > 1
      ? used.map((rung) => `${urlOf(rung.preset.name, format)} ${rung.width}w`).join(", ") : urlOf(plain.preset.name, format));
    const size = `width="${width}" height="${Math.max(1, Math.round(width * plain.height / plain.width))}"`;
    const img = `<img src="${urlOf(plain.preset.name, "")}"`
      + `${sizes && `\n     srcset="${srcset("")}"\n    ${sizes}`}\n     ${size} alt="${quoted(alt)}" loading="lazy">`;
    const lines = formats.map((format) => `  <source type="image/${format}" srcset="${srcset(format)}"${sizes}>`);
    const note = widest.width < width ? `The widest of these is ${widest.width} pixels wide: it is shown larger than it is.`
      : widest.width < 2 * width ? `The widest of these is ${widest.width} pixels wide: sharp on usual screens, softer on denser ones.` : "";
    return { img, picture: lines.length ? `<picture>\n${lines.join("\n")}\n  ${img.replaceAll("\n", "\n  ")}\n</picture>` : "", note };
  }

  let building;
  function build() {
    const width = Math.round(Number(wanted.value));
    built.replaceChildren();
    builtNote.textContent = "";
    if (!building || !(width >= 1 && width <= 10_000)) {
      builtNote.textContent = "A width is a number of 1 to 10000.";
      return;
    }
    const { made, picture } = building;
    const isMoving = Boolean(picture.info?.animated);
    const isFixed = isVideo(picture) || picture.format;
    const { img, picture: tag, note } = markup(ladder(made, shape.value, isMoving), width, {
      alt: picture.alt,
      // The first frame would be all that AVIF shows.
      formats: isFixed ? [] : isMoving ? ["webp"] : ["avif", "webp"],
      urlOf: (name, format) => base + pathOf(name, format ? { ...picture, format } : picture),
    });
    builtNote.textContent = note;
    for (const [label, text] of [["<picture>", tag], ["<img>", img]]) {
      if (!text) continue;
      built.append(element("div", "", element("h3", "", label), copyButton("Copy", `Copy the built ${label}`, text)),
        element("pre", "", element("code", "", text)));
    }
  }
  function offerBuilder(made, picture) {
    building = { made, picture };
    const chosen = shape.value;
    const shapes = [...new Set(made.map(({ preset }) => shapeOf(preset)))].sort().reverse();
    shape.replaceChildren(...shapes.map((name) => element("option", "", name)));
    if (shapes.includes(chosen)) shape.value = chosen;
    builder.hidden = !made.length;
    build();
  }
  wanted.addEventListener("input", build);
  shape.addEventListener("change", build);
