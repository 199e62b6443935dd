// One job a line in, one answer a line out; see bench/process_worker.py for the fields.
import fs from 'node:fs'
import { createRequire } from 'node:module'
import readline from 'node:readline'

// The packages are where the second argument says, not beside this file.
const sharp = createRequire(process.argv[2] + '/package.json')('sharp')
sharp.concurrency(1)
sharp.cache(false)

// A PNG without quality: with one, sharp would reduce it to a palette.
const options = (format, quality) =>
  format === 'png' ? {} : { quality: format === 'avif' ? Math.max(quality - 20, 1) : quality }

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { source, width, height, fit, quality, format, result } = JSON.parse(line)
  const data = fs.readFileSync(source)
  const box = fit === 'cover' ? { fit: 'cover' } : { fit: 'inside', withoutEnlargement: true }
  const before = process.cpuUsage()
  const made = await sharp(data)
    .rotate()
    .resize({ width, height: height || null, ...box })
    [format](options(format, quality))
    .toBuffer()
  const { user, system } = process.cpuUsage(before)
  if (result) fs.writeFileSync(result, made)
  console.log(JSON.stringify({ cpu_ms: (user + system) / 1000, bytes: made.length }))
}
