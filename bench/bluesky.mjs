// Bluesky's image server over one PDS, with the presets and for the account in the JSON of argv[2]:
// {port, cache, did, pds, presets: {NAME: [WIDTH, HEIGHT or 0, "cover" or "contain", QUALITY]}}.
// Run in a folder whose node_modules has @atproto/bsky; ends with its standard input.
import { createRequire } from 'node:module'
import path from 'node:path'

const installed = createRequire(path.join(process.cwd(), 'package.json'))
const inside = createRequire(installed.resolve('@atproto/bsky'))
const { createMiddleware } = inside('./image/server.js')
const uris = inside('./image/uri.js')
const express = inside('express')
// The agent has to be of the release that the package itself uses.
const { Agent } = inside('undici')

const given = JSON.parse(process.argv[2])
uris.ImageUriBuilder.presets.length = 0
for (const [name, [width, height, fit, quality]] of Object.entries(given.presets)) {
  const covers = fit === 'cover'
  uris.ImageUriBuilder.presets.push(name)
  uris.presets[name] = {
    format: 'jpeg',
    fit: covers ? 'cover' : 'inside',
    width,
    height: height || null,
    quality,
    // Ours fills a box to be covered, and never enlarges within one.
    min: covers,
  }
}

// What its data plane, a database, would answer.
const services = { atproto_pds: { Type: 'AtprotoPersonalDataServer', URL: given.pds } }
const identity = { did: given.did, services: Buffer.from(JSON.stringify(services)) }
const context = {
  cfg: { blobCacheLocation: given.cache },
  dataplane: {
    getIdentityByDid: async () => identity,
    getBlobTakedown: async () => ({ takenDown: false }),
  },
  blobDispatcher: new Agent(),
}

const app = express()
app.get('/readyz', (request, response) => response.send('ready'))
app.use(createMiddleware(context, { prefix: '/img/' }))
process.stdin.on('end', () => process.exit(0)).resume()
app.listen(given.port, '127.0.0.1')
