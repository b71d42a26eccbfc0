#!/bin/sh
# A Fastify service that keeps idle connections for two seconds gets a new one for every fetch.
#
# Node's server says how long it keeps a connection: with `keepAliveTimeout: 2000` each answer has
# `Keep-Alive: timeout=2`. undici, which is Node's `fetch`, takes two seconds off that hint against
# the race with the server's close, and what is left is nothing: the connection is closed at once.
# A server that keeps its connections just as long and says nothing has them reused, and so has one
# that says three. Node's other client, `http.Agent`, takes off one second and reuses it. There is no
# error, only handshakes, closed sockets and their time.
#
# What to do: keep idle connections of a service that Node calls for three seconds at least (better:
# longer than any proxy before it), or give the client
# `new Agent({ keepAliveTimeoutThreshold: 500 })`. A proxy must not forward `Keep-Alive`: it is
# hop-by-hop, and an upstream's two seconds would end the proxy's own connections.
# Pinned: undici==7.30.2, fastify==5.12.8 (npm writes @).
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init --yes > npm.log
npm install --silent --no-audit --no-fund --save-exact fastify@5.12.8 undici@7.30.2 >> npm.log
cat > shown.mjs <<'JS'
import { readFileSync } from 'node:fs'
import http from 'node:http'
import fastify from 'fastify'
import { Agent, fetch } from 'undici'

const REQUESTS = 10

async function byFetch (url) {
  const dispatcher = new Agent()
  for (let i = 0; i < REQUESTS; i++) await (await fetch(url, { dispatcher })).text()
  await dispatcher.close()
}

async function byAgent (url) {
  const agent = new http.Agent({ keepAlive: true })
  for (let i = 0; i < REQUESTS; i++) {
    await new Promise((resolve, reject) => {
      http.get(url, { agent }, (answer) => {
        answer.resume().on('close', () => setImmediate(resolve))
      }).on('error', reject)
    })
  }
  agent.destroy()
}

// The server itself keeps connections for a minute: none is closed under a slow client.
async function connections (client, hint) {
  const app = fastify({ keepAliveTimeout: 60000 })
  let opened = 0
  app.server.on('connection', () => opened++)
  app.get('/', (request, reply) => {
    reply.header('connection', 'keep-alive')
    if (hint) reply.header('keep-alive', hint)
    return 'here'
  })
  await client(await app.listen({ host: '127.0.0.1', port: 0 }))
  await app.close()
  return opened
}

const said = await (async () => {
  const app = fastify({ keepAliveTimeout: 2000 })
  app.get('/', () => 'here')
  const answer = await fetch(await app.listen({ host: '127.0.0.1', port: 0 }))
  await answer.text()
  await app.close()
  return answer.headers.get('keep-alive')
})()
const of = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version
const two = await connections(byFetch, said)
const three = await connections(byFetch, 'timeout=3')
const unsaid = await connections(byFetch, null)
const other = await connections(byAgent, said)
console.log(`version: undici ${of('undici')}, fastify ${of('fastify')}, Node ${process.versions.node}`)
console.log('behaviour: one would expect ten requests one after the other to share a connection ' +
  'that the server says it keeps for two seconds; undici closes it after each answer')
console.log(`seen: "${said}" is sent for keepAliveTimeout 2000; connections for ${REQUESTS} requests: ` +
  `fetch at timeout=2 ${two}, at timeout=3 ${three > 2 ? three : '1 or 2'}, ` +
  `unsaid ${unsaid > 2 ? unsaid : '1 or 2'}; http.Agent at timeout=2 ${other}`)
process.exit(said === 'timeout=2' && two === REQUESTS && three <= 2 && unsaid <= 2 && other === 1 ? 0 : 1)
JS
node shown.mjs
