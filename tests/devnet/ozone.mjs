// A real Ozone, Bluesky's labeler, on loopback beside a network of network.mjs.
//
//     node ozone.mjs PLC_URL PDS_URL PDS_DID DATABASE_URL
//
// Run it in a folder whose node_modules holds package.json's dependencies. One JSON line on
// standard output says where it is. Then every line on standard input, {"do": NAME, ...}, is
// carried out and answered with a line; it stops at the end of standard input, or on a signal.

import dns from 'node:dns'
import { createRequire } from 'node:module'
import net from 'node:net'
import path from 'node:path'
import readline from 'node:readline'

// Standard output is for the answers alone.
console.log = console.info = console.debug = console.error
process.env.LOG_ENABLED = 'false'

// The library listens on every interface and offers no setting for it.
const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (first, ...rest) {
  const options = typeof first === 'object' ? first : { port: first }
  return listen.call(this, { ...options, host: '127.0.0.1' }, ...rest)
}
// The servers call each other as "localhost", which may be ::1 first.
dns.setDefaultResultOrder('ipv4first')

const require = createRequire(path.join(process.cwd(), 'package.json'))
const plc = require('@did-plc/lib')
const { Secp256k1Keypair } = require('@atproto/crypto')
const { TestOzone } = require('@atproto/dev-env/dist/ozone.js')

const [plcUrl, pdsUrl, pdsDid, dbPostgresUrl] = process.argv.slice(2)

async function freePort() {
  const server = net.createServer()
  await new Promise((resolve) => server.listen(0, resolve))
  const { port } = server.address()
  await new Promise((resolve) => server.close(resolve))
  return port
}

// The library's own DID names a labeler that is nowhere.
const port = await freePort()
const signingKey = await Secp256k1Keypair.create({ exportable: true })
const operation = await plc.signOperation(
  {
    type: 'plc_operation',
    alsoKnownAs: [],
    rotationKeys: [signingKey.did()],
    verificationMethods: { atproto_label: signingKey.did() },
    services: {
      atproto_labeler: { type: 'AtprotoLabeler', endpoint: `http://localhost:${port}` },
    },
    prev: null,
  },
  signingKey,
)
const serverDid = await plc.didForCreateOp(operation)
await new plc.Client(plcUrl).sendOperation(serverDid, operation)

const ozone = await TestOzone.create({
  port,
  plcUrl,
  serverDid,
  signingKey,
  dbPostgresUrl,
  dbPostgresSchema: 'ozone',
  // There is no AppView; it asks this one for what it shows its moderators.
  appviewUrl: pdsUrl,
  appviewDid: pdsDid,
  appviewPushEvents: false,
  pdsUrl,
  pdsDid,
})
const client = ozone.getModClient()

const commands = {
  // What a moderator does.
  takedown: ({ subject, hours }) => client.performTakedown({ subject, durationInHours: hours }),
  reverse: ({ subject }) => client.performReverseTakedown({ subject }),
  // A label of its own, where no moderator's action makes one like it.
  label: ({ uri, cid, create, negate, hours }) =>
    ozone.ctx
      .modService(ozone.ctx.db)
      .formatAndCreateLabels(uri, cid ?? null, { create, negate }, hours),
}

const answer = (value) => process.stdout.write(JSON.stringify(value) + '\n')
answer({ url: ozone.url, did: serverDid })

const lines = readline.createInterface({ input: process.stdin })
process.on('SIGTERM', () => process.exit(0))
process.on('SIGINT', () => process.exit(0))
for await (const line of lines) {
  const { do: name, ...options } = JSON.parse(line)
  try {
    await commands[name](options)
    answer({})
  } catch (error) {
    answer({ error: String(error) })
  }
}
setTimeout(() => process.exit(0), 5000)
await ozone.close()
process.exit(0)
