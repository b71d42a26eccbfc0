// A gateway as Node writes it: @fastify/http-proxy, and a page put together by undici.
// node fastify.cjs MODULES PORT UPSTREAM
const [modules, port, upstream] = process.argv.slice(2);
const from = require("node:module").createRequire(modules + "/");
const connections = 256;
const pool = new (from("undici").Pool)(upstream, { connections, pipelining: 1 });
const app = from("fastify")({ logger: false });

async function branch(path) {
  const { statusCode, body } = await pool.request({ path, method: "GET" });
  if (statusCode !== 200) throw new Error(`${path} answered ${statusCode}`);
  return body.json();
}

app.get("/page", async () => {
  const [user, orders, stock] = await Promise.all(["/user", "/orders", "/stock"].map(branch));
  return { user, orders, stock };
});
app.register(from("@fastify/http-proxy"), { upstream, undici: { connections, pipelining: 1 } });
app.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
