// BullMQ with undici, as their documentation has them: 20,000 jobs are put into a queue, or sent by one worker.
//
//     node peer_worker.mjs fill|work REDIS_URL RECEIVER_URL KEY CONCURRENCY DELIVERIES
//
// KEY is base64; DELIVERIES is a file with one {"id", "body"} a line. `peers.py` runs it beside its node_modules.

import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { Queue, Worker } from "bullmq";
import { Pool } from "undici";

const [what, redis, receiver, secret, concurrency, deliveries] = process.argv.slice(2);
const { hostname, port } = new URL(redis);
const connection = { host: hostname, port: Number(port), maxRetriesPerRequest: null };
const AT_ONCE = 1000;

async function fill() {
  const queue = new Queue("webhooks", { connection });
  const lines = readFileSync(deliveries, "utf8").trimEnd().split("\n");
  const opts = { attempts: 10, backoff: { type: "exponential", delay: 1000 }, removeOnComplete: true };
  for (let at = 0; at < lines.length; at += AT_ONCE) {
    const batch = lines.slice(at, at + AT_ONCE);
    await queue.addBulk(batch.map((line) => ({ name: "send", data: JSON.parse(line), opts })));
  }
  await queue.close();
}

function work() {
  const key = Buffer.from(secret, "base64");
  const { origin, pathname } = new URL(receiver);
  const pool = new Pool(origin, { connections: Number(concurrency), headersTimeout: 20_000 });

  async function send({ data: { id, body } }) {
    const timestamp = Math.floor(Date.now() / 1000);
    const signature = createHmac("sha256", key).update(`${id}.${timestamp}.${body}`).digest("base64");
    const headers = {
      "content-type": "application/json",
      "user-agent": "peer/1",
      "webhook-id": id,
      "webhook-timestamp": String(timestamp),
      "webhook-signature": `v1,${signature}`,
    };
    const response = await pool.request({ method: "POST", path: pathname, headers, body });
    await response.body.dump();
    if (response.statusCode >= 300) throw new Error(`status ${response.statusCode}`);
  }

  new Worker("webhooks", send, { connection, concurrency: Number(concurrency) });
}

await (what === "fill" ? fill() : work());
