// Labels and frames made by the AT Protocol's own TypeScript code: tests/moderation/feeds/vectors.json.
//
//     node label_vectors.mjs > vectors.json
//
// Run it in a folder whose node_modules holds package.json's dependencies. The keys are new each
// time, so every signature differs from run to run.

import { createRequire } from 'node:module'
import path from 'node:path'

const require = createRequire(path.join(process.cwd(), 'package.json'))
const { Secp256k1Keypair, P256Keypair, bytesToMultibase, formatMultikey } = require('@atproto/crypto')
const { formatLabel, signLabel } = require('@atproto/ozone/dist/mod-service/util.js')
const { ErrorFrame, MessageFrame } = require('@atproto/xrpc-server')

const src = 'did:plc:ar7c4by46qjdydhdevvrndac'
const owner = 'did:plc:z72i7hdynmk6r22z27h6tvur'
const record = `at://${owner}/app.bsky.feed.post/3jzfcijpj2z2a`
const version = 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a'
const blob = 'bafkreihagr2cmvl2jt4mgx3sppwe2it3fwolkrbtjrhcnwjk4jdijhsoze'
const cts = '2026-01-02T03:04:05.678Z'

const labels = {
  account: { src, uri: owner, val: '!takedown', cts },
  record: { src, uri: record, cid: version, val: '!takedown', cts },
  'any version': { src, uri: record, val: '!takedown', cts },
  blob: { src, uri: owner, cid: blob, val: '!takedown', cts },
  negated: { src, uri: owner, val: '!takedown', neg: true, cts },
  expiring: { src, uri: owner, val: '!takedown', cts, exp: '2026-01-03T03:04:05.678Z' },
  'with a value of many bytes': { src, uri: owner, val: '\u00e9\u4e2d\u{1f600}', cts },
}

const hex = (bytes) => Buffer.from(bytes).toString('hex')
const cases = []
for (const [curve, Keypair, jwt] of [
  ['k256', Secp256k1Keypair, 'ES256K'],
  ['p256', P256Keypair, 'ES256'],
]) {
  const key = await Keypair.create({ exportable: true })
  for (const [name, label] of Object.entries(labels)) {
    const signed = await signLabel({ ver: 1, ...label }, key)
    const body = { seq: cases.length + 1, labels: [formatLabel(signed)] }
    cases.push({
      name: `${name}, ${curve}`,
      key: formatMultikey(jwt, key.publicKeyBytes()),
      'older key': bytesToMultibase(key.publicKeyBytes(), 'base58btc'),
      frame: hex(new MessageFrame(body, { type: '#labels' }).toBytes()),
    })
  }
}

const frames = {
  outdated: hex(
    new MessageFrame({ name: 'OutdatedCursor', message: 'too old' }, { type: '#info' }).toBytes(),
  ),
  future: hex(
    new ErrorFrame({ error: 'FutureCursor', message: 'Cursor in the future.' }).toBytes(),
  ),
  slow: hex(
    new ErrorFrame({ error: 'ConsumerTooSlow', message: 'Stream consumer too slow' }).toBytes(),
  ),
}
process.stdout.write(JSON.stringify({ cases, frames }, null, 1) + '\n')
