// Holds the package to the calls, and their results, that VECTORS has.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import * as exported from "atproto-imageproxy";
import { unpicTransformer } from "atproto-imageproxy/unpic";

const { file, base, calls } = JSON.parse(readFileSync(process.env.VECTORS, "utf8"));
const images = exported.imageProxy(file, { base });
const callable = { ...images, sizeIn: exported.sizeIn, transformed: unpicTransformer(images) };

for (const name of new Set(calls.map(([called]) => called))) {
  test(name, () => {
    let checked = 0;
    for (const [called, given, expected, error] of calls) {
      if (called !== name) continue;
      const call = () => callable[name](...given);
      if (error) {
        assert.throws(call, (thrown) => thrown.name === error && thrown instanceof exported.InvalidRequest, JSON.stringify(given));
      } else {
        assert.deepEqual(call(), expected, JSON.stringify(given));
      }
      checked++;
    }
    console.log(`checked ${checked}`);
  });
}

// Catches a TypeError of the engine, of which nobody can tell that the file was not loaded.
for (const [given, options, missing] of [
  [undefined, undefined, ["presets", "formats", "base_url"]],
  [null, undefined, ["presets", "formats", "base_url"]],
  [{}, undefined, ["presets", "formats", "base_url"]],
  [{}, { base }, ["presets", "formats"]],
  [{ ...file, presets: null }, undefined, ["presets"]],
  [{ ...file, base_url: undefined }, undefined, ["base_url"]],
]) {
  test(`what is no file is told so: ${JSON.stringify(given)?.slice(0, 40)} ${JSON.stringify(options)}`, () => {
    assert.throws(() => exported.imageProxy(given, options), (thrown) => {
      assert.equal(thrown.name, "TypeError");
      const said = /^imageProxy\(\) takes what `imageproxy presets --json` prints; this lacks (.*)$/.exec(thrown.message);
      assert.deepEqual(said?.[1].split(", ").map((each) => each.split(" ")[0]), missing);
      return true;
    });
  });
}
