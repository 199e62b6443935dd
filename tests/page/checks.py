"""What must hold of every page, as functions for a browser; each returns what breaks it."""

from __future__ import annotations

FAINT = """() => {
    const canvas = document.createElement("canvas").getContext("2d");
    const rgb = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ground = (each) => {
        for (; each; each = each.parentElement) {
            const color = rgb(getComputedStyle(each).backgroundColor);
            if (color[3] === 255) return color;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll("main *")]
        .filter((each) => [...each.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
        .filter((each) => each.getClientRects().length && each.localName !== "option")
        .map((each) => {
            const [a, b] = [light(rgb(getComputedStyle(each).color)), light(ground(each))];
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return [contrast, each.outerHTML.slice(0, 120)];
        })
        .filter(([contrast]) => contrast < 4.5);
}"""
"""Text with too little contrast (WCAG 2.2, 1.4.3), and how much it has."""

SMALL = """() => [...document.querySelectorAll("button, input:not([type=radio]), select")]
    .filter((each) => each.getClientRects().length)
    .filter((each) => each.getBoundingClientRect().height < 44)
    .map((each) => each.outerHTML)"""
"""Controls that a finger misses."""

UNNAMED = """() => [...document.querySelectorAll("button, input, select, textarea, a")]
    .filter((each) => !(each.labels?.[0]?.textContent.trim()
        || each.getAttribute("aria-label") || each.textContent.trim()))
    .map((each) => each.outerHTML)"""
"""Controls without a name for a screen reader."""

CUT = """() => [...document.querySelectorAll("button, form label, h2, dd, summary")]
    .filter((each) => each.getClientRects().length)
    .filter((each) => each.scrollWidth > each.clientWidth + 1)
    .map((each) => each.outerHTML.slice(0, 90))"""
"""Words that are cut off, or stick out of their frame."""
