  // A dialog in which a result lies over its source, cut at a line that people move.
  const compare = by("compare");
  const [stack, line, zoom] = ["stack", "line", "zoom"].map(by);
  const sources = new WeakMap();
  let comparing = "";
  const isComparing = (name) => comparing === name;
  // Closes it for somebody who goes elsewhere.
  function shut() {
    comparing = "";
    compare.close();
  }

  // The bytes of a picture's source, asked for once.
  function sourceFor(picture, signal) {
    if (!sources.has(picture)) {
      const asked = ask(`/blob/${escaped(picture.did)}/${escaped(picture.cid)}`, { signal }).then(({ data }) => data);
      asked.catch(() => sources.delete(picture));
      sources.set(picture, asked);
    }
    return sources.get(picture);
  }
  const weightOf = (data, image) => [
    ...(image ? [`${image.naturalWidth} × ${image.naturalHeight}`] : []),
    `${inBytes(data.size)} ${data.type.replace("image/", "")}`,
  ].join(", ");
  function change(before, after) {
    const part = Math.round(Math.abs(1 - after / before) * 100);
    return part ? `, ${part}% ${after < before ? "less" : "more"}` : "";
  }

  function cutAt(percent) {
    line.value = percent;
    stack.style.setProperty("--at", `${line.value}%`);
  }
  function zoomTo(factor) {
    const { naturalWidth: width, naturalHeight: height } = stack.lastElementChild;
    stack.style.setProperty("--ratio", width / height);
    stack.style.setProperty("--width", factor ? `${width * factor}px` : "100%");
    stack.className = factor ? "zoomed" : "";
    const view = stack.parentElement;
    view.scrollTo((view.scrollWidth - view.clientWidth) / 2, (view.scrollHeight - view.clientHeight) / 2);
  }

  async function showComparison(preset, picture, data, result, signal) {
    const image = await decoded(data);
    image.alt = result.alt;
    image.className = "result";
    stack.replaceChildren(image);
    by("compare-title").textContent = `${preset.name} and its source`;
    by("before").textContent = "Source: asking for it …";
    by("after").textContent = `${preset.name}: ${weightOf(data, result)}`;
    zoom.value = "";
    zoomTo(0);
    cutAt(50);
    comparing = preset.name;
    compare.showModal();
    try {
      const source = await sourceFor(picture, signal);
      const shown = await decoded(source).catch(() => undefined);
      if (stack.lastElementChild !== image) return; // another one is shown by now
      by("before").textContent = `Source: ${weightOf(source, shown)}${shown ? "" : ". This browser does not show this format."}`;
      by("after").textContent += change(source.size, data.size);
      if (!shown) return cutAt(0);
      shown.alt = "The source";
      stack.prepend(shown);
    } catch (error) {
      if (stack.lastElementChild === image) by("before").textContent = `Source: ${error.message}`;
      cutAt(0);
    }
  }
  line.addEventListener("input", () => cutAt(line.value));
  zoom.addEventListener("change", () => zoomTo(Number(zoom.value)));
  stack.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse") return; // fingers scroll
    const { left, width } = stack.getBoundingClientRect();
    cutAt((event.clientX - left) / width * 100);
  });
  compare.addEventListener("click", (event) => { if (event.target === compare) compare.close(); });
  compare.addEventListener("close", () => {
    if (compare.open || !comparing) return;
    comparing = "";
    leftComparison();
  });
  by("close").addEventListener("click", () => compare.close());
