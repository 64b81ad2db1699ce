// A reward in another language: bright images first, or dark ones where the prompt asks for night. Node and sharp.
//
//     npm ci && node server.mjs 8406
//     dipole rewards check http://127.0.0.1:8406
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import sharp from 'sharp'

const MAX_BODY = 64 * 2 ** 20
const VERSIONS = { model: 'mean-light', model_revision: '1', recipe_version: '1' }
const INFO = {
  name: 'light', ...VERSIONS, protocol_version: '1', media_types: ['image/png', 'image/jpeg', 'image/webp'],
  max_candidates: 32, max_pixels: 2 ** 24, calibrated: true, multipart: false,
}

class Refusal extends Error {
  constructor(field, message, status) {
    super(`${field}: ${message}`)
    Object.assign(this, { field, status })
  }
}
function must(holds, field, message, status = 422) {
  if (!holds) throw new Refusal(field, message, status)
}

async function read(request) {
  const { 'content-type': type = '', 'content-length': length = 0 } = request.headers
  must(type.startsWith('application/json'), 'Content-Type', 'must be application/json', 415)
  must(Number(length) <= MAX_BODY, 'body', `must have at most ${MAX_BODY} bytes`, 413)
  const chunks = []
  let size = 0
  for await (const chunk of request) {
    size += chunk.length
    must(size <= MAX_BODY, 'body', `must have at most ${MAX_BODY} bytes`, 413)
    chunks.push(chunk)
  }
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)))
  } catch {
    throw new Refusal('body', 'must be JSON', 422)
  }
}

function check({ prompt, candidates, metadata, callback_url, ...unknown }) {
  must(typeof prompt === 'string' && [...prompt].length <= 10_000, 'prompt', 'must be text of up to 10000 characters')
  must(Array.isArray(candidates) && candidates.length > 0, 'candidates', 'must be a list of at least one')
  must(candidates.length <= INFO.max_candidates, 'candidates', `must be at most ${INFO.max_candidates}`, 413)
  for (const [index, one] of candidates.entries()) {
    const at = `candidates[${index}]`
    must(typeof one?.id === 'string' && /^[\w.:-]{1,128}$/.test(one.id), `${at}.id`, 'must be 1 to 128 of A-Z a-z 0-9 . _ : -')
    must(INFO.media_types.includes(one.image?.media_type), `${at}.image.media_type`, 'is not accepted')
    must(typeof one.image.data === 'string', `${at}.image.data`, 'must be base64')
  }
  must(new Set(candidates.map((one) => one.id)).size === candidates.length, 'candidates', 'must have ids of their own')
  must(callback_url == null, 'callback_url', 'is not called: leave it out')
  must(Object.keys(unknown).length === 0, Object.keys(unknown)[0], 'is not known')
}

async function brightness({ media_type, data }, field) {
  const bytes = Buffer.from(data, 'base64') // skips what is not base64, hence the comparison
  must(bytes.toString('base64') === data, field, 'data must be base64')
  try {
    const image = sharp(bytes, { limitInputPixels: INFO.max_pixels, failOn: 'warning' }) // bounded before it is decoded
    must(`image/${(await image.metadata()).format}` === media_type, field, `must be ${media_type}`)
    const small = image.flatten({ background: 'white' }).toColourspace('srgb').resize(64, 64, { fit: 'fill' })
    const pixels = await small.raw().toBuffer()
    return pixels.reduce((sum, value) => sum + value, 0) / pixels.length / 255
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal(field, error.message, 422)
  }
}

async function rank(asked) {
  must(asked !== null && typeof asked === 'object', 'body', 'must be an object')
  check(asked)
  const sign = /night|dark/i.test(asked.prompt) ? -1 : 1
  const scores = []
  for (const [index, { image }] of asked.candidates.entries()) { // one after the other: one image in memory
    scores.push(sign * (await brightness(image, `candidates[${index}].image`)))
  }
  const place = (score) => 1 + scores.filter((other) => other > score).length // 1 is best, ties share
  const results = asked.candidates.map(({ id }, index) => ({ id, score: scores[index], rank: place(scores[index]) }))
  return { id: randomUUID(), created: Math.floor(Date.now() / 1000), ...VERSIONS, results }
}

const ROUTES = {
  'GET /livez': () => 'alive',
  'GET /readyz': () => 'ready',
  'GET /v1/info': () => INFO,
  'POST /v1/rank': async (request) => rank(await read(request)),
}

const server = createServer(async (request, response) => {
  const send = (status, type, document) => response.writeHead(status, { 'content-type': type }).end(JSON.stringify(document))
  try {
    const route = ROUTES[`${request.method} ${request.url}`]
    must(route, request.method, 'there is no such route', 404)
    send(200, 'application/json', await route(request))
  } catch (error) {
    if (!(error instanceof Refusal)) console.error(error)
    const { status = 500, field = 'server', message } = error
    if (!request.complete) response.setHeader('connection', 'close') // nobody reads the rest of its body
    send(status, 'application/problem+json', { title: 'Refused', status, detail: message, errors: [{ field, message }] })
  }
})
server.listen(Number(process.argv[2] ?? 8406), '127.0.0.1', () => console.log(`listening on ${server.address().port}`))
