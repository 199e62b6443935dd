// A real PLC directory and PDS on loopback, both in memory and in a temporary folder.
//
//     node network.mjs [PLC_PORT [PDS_PORT]]      (0 or nothing: a free port)
//
// Run it in a folder whose node_modules holds package.json's dependencies. One JSON line on
// standard output says where the servers are; they stop on SIGTERM, SIGINT or the end of
// standard input, so that they never outlive whoever started them.

import dns from 'node:dns'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'

// Standard output is for the ready line alone.
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
// The package's index would also load the AppView and its image library.
const { TestNetworkNoAppView } = require('@atproto/dev-env/dist/network-no-appview.js')
const { ADMIN_PASSWORD } = require('@atproto/dev-env/dist/const.js')

// The library never removes the folders that it makes here.
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'devnet-'))
process.env.TMPDIR = folder
process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }))

let network
let stopping = false
async function stop() {
  if (stopping) return
  stopping = true
  // Connections that a client keeps alive can hold a close back.
  setTimeout(() => process.exit(0), 5000)
  await network?.close()
  process.exit(0)
}
process.on('SIGTERM', stop)
process.on('SIGINT', stop)
process.stdin.on('end', stop).on('error', stop).resume()

// A port of 0 must be left out: passed on, it would overrule the free port that is chosen.
const [plc, pds] = process.argv.slice(2).map((port) => (Number(port) ? { port: Number(port) } : {}))
network = await TestNetworkNoAppView.create({
  plc,
  pds: {
    ...pds,
    // "localhost" makes the endpoint in DID documents http://localhost:PORT, not https.
    hostname: 'localhost',
    // More than the PDS's 5 MiB, so that a proxy can meet a blob that it must refuse.
    blobUploadLimit: 16 * 1024 * 1024,
  },
})

const ready = {
  plc_url: network.plc.url,
  pds_url: network.pds.url,
  pds_did: network.pds.ctx.cfg.service.did,
  admin_password: ADMIN_PASSWORD,
}
process.stdout.write(JSON.stringify(ready) + '\n')
