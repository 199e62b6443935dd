  const by = (id) => document.getElementById(id);

  function element(name, kind, ...inside) {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    made.append(...inside);
    return made;
  }
  function say(text, isBad = false) {
    status.textContent = text;
    status.classList.toggle("bad", isBad);
  }

  // The path is decoded once, so a percent sign of a did:web with a port is escaped.
  const escaped = (part) => encodeURIComponent(part).replaceAll("%3A", ":");

  // A sentence for what the server says of a failure; undefined for what it never says.
  function sentenceOf(text, { q = "", cid = "", medium = "" }) {
    const given = (asked) => `“${asked.length > 80 ? `${asked.slice(0, 80)}…` : asked}”`;
    const unreachable = "This server could not reach the directory, or the account’s server. Its log, and imageproxy doctor, say why.";
    const unreadable = document.querySelector("main").dataset.video
      ? "This is no video of which this server makes a poster: an MP4, MOV or WebM."
      : "This server makes no posters of videos: they need its extra “video”.";
    return {
      "invalid handle format": /^(b[a-z2-7]{50,}|Qm\w{44})$/.test(q)
        ? "A CID needs its account before it: a handle or a DID."
        : `${given(q)} is no handle (alice.example.com), DID or link.`,
      "invalid DID format": `There is no valid DID (did:plc:… or did:web:…) in ${given(q)}.`,
      "invalid CID format": `There is no valid CID (bafkrei…) in ${given(cid || q)}.`,
      "invalid request": `${given(q)} leads to no account, post or picture.`,
      "no such account": `There is no such account: ${given(q)}.`,
      "no such record": "There is no such post or record. It may have been deleted.",
      "blob not found": "There is no such picture.",
      "unsupported image format": medium === "video"
        ? unreadable
        : "This is no image, or one of a format that this server does not read.",
      "image too large": `The ${medium || "image"} is larger than this server accepts.`,
      "image could not be decoded": `The ${medium || "image"} is damaged: it could not be decoded.`,
      "failed to resolve DID": unreachable,
      "failed to resolve handle": `${given(q)} was found neither in DNS nor at its own domain. If it is spelled right, this server’s log, and imageproxy doctor, say why.`,
      "no PDS endpoint found": "The account names no server that could be asked.",
      "failed to fetch blob from PDS": unreachable,
      "blob does not match its CID": "The account’s server sent other bytes than the CID names.",
      busy: "This server is busy. Try again in a moment.",
      "request timed out": "The directory, or the account’s server, took too long to answer.",
      "internal server error": "This server failed. Its log says why.",
    }[text];
  }
  // What is not the server's message comes from a reverse proxy: its server is down, or it refuses by itself.
  const explained = (status, text, asked) =>
    sentenceOf(text, asked) ?? (status >= 500 ? "The server does not answer."
      : text.startsWith("<") ? `What stands before this server refused it, with status ${status}.` : `${status}: ${text}`);

  // A front may have mounted the service below a path: its root is where this page is.
  const root = location.pathname.slice(0, location.pathname.lastIndexOf("/"));
  async function ask(path, options, asked = {}) {
    let answer, data;
    try {
      answer = await fetch(root + path, options);
      data = await answer.blob();
    } catch (error) {
      throw options.signal.aborted ? error : new Error("The server does not answer.");
    }
    if (!answer.ok) throw new Error(explained(answer.status, (await data.text()).trim(), asked), { cause: answer.status });
    return { answer, data };
  }
  async function decoded(data) {
    const image = new Image();
    image.src = URL.createObjectURL(data);
    await image.decode().catch(() => { throw new Error("This browser does not show this format.", { cause: 415 }); });
    URL.revokeObjectURL(image.src);
    return image;
  }
