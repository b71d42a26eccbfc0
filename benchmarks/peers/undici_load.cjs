// POSTs over kept connections until SIGTERM; prints what came of them, as JSON.
// node undici_load.cjs MODULES URL BODY CONNECTIONS
const [modules, url, body, connections] = process.argv.slice(2);
const { Agent, request } = require("node:module").createRequire(modules + "/")("undici");
const dispatcher = new Agent({ connections: Number(connections), pipelining: 1 });
const headers = { "content-type": "application/json" };
const counts = {};
let isOver = false;
process.on("SIGTERM", () => (isOver = true));

async function client() {
  while (!isOver) {
    let outcome;
    try {
      const answer = await request(url, { method: "POST", headers, body, dispatcher });
      await answer.body.dump();
      outcome = String(answer.statusCode);
    } catch (error) {
      outcome = error.code || error.name;
      await new Promise((done) => setTimeout(done, 20));
    }
    counts[outcome] = (counts[outcome] || 0) + 1;
  }
}

Promise.all(Array.from({ length: Number(connections) }, client)).then(() => {
  console.log(JSON.stringify(counts));
  process.exit(0);
});
