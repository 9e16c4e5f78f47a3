// The smallest ACP agent there can be, so that it is not the agent that is measured.
//
// The prompt "hi" is answered by one update at once, and 10 ms later by the end of the turn: an
// agent that streams does not end in the same breath. The prompt "burst" is answered by as many
// small updates as argv says, numbered from 0, encoded beforehand and written in big pieces.

import { randomUUID } from "node:crypto";
import process from "node:process";

const PIECE_BYTES = 64 << 10;
const ANSWER_MS = 10;
const burstSize = Number(process.argv[2] ?? 20000);
const bursts = new Map();

const line = (message) => `${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`;
const send = (message) => process.stdout.write(line(message));

function update(sessionId, text) {
  const content = { type: "text", text };
  return {
    method: "session/update",
    params: { sessionId, update: { sessionUpdate: "agent_message_chunk", content } },
  };
}

function prepare(sessionId) {
  if (bursts.has(sessionId)) return;
  const lines = Array.from({ length: burstSize }, (_, n) => line(update(sessionId, `${n} `)));
  bursts.set(sessionId, Buffer.from(lines.join("")));
}

const methods = {
  initialize: () => ({
    protocolVersion: 1,
    agentCapabilities: { loadSession: true },
    agentInfo: { name: "bench", version: "1" },
    authMethods: [],
  }),
  "session/new"() {
    const sessionId = randomUUID();
    prepare(sessionId);
    return { sessionId };
  },
  "session/load"({ sessionId }) {
    prepare(sessionId);
    return {};
  },
};

function prompt(id, { sessionId, prompt: blocks }) {
  const answer = { id, result: { stopReason: "end_turn" } };
  if (blocks[0].text.trim() !== "burst") {
    send(update(sessionId, "0 "));
    setTimeout(send, ANSWER_MS, answer);
    return;
  }
  const bytes = bursts.get(sessionId);
  for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
    process.stdout.write(bytes.subarray(at, at + PIECE_BYTES));
  }
  send(answer);
}

let rest = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (data) => {
  const lines = (rest + data).split("\n");
  rest = lines.pop();
  for (const { id, method, params } of lines.filter(Boolean).map((text) => JSON.parse(text))) {
    if (method === "session/prompt") prompt(id, params);
    else if (id !== undefined && method in methods) send({ id, result: methods[method](params) });
    else if (id !== undefined && method) send({ id, error: { code: -32601, message: method } });
  }
});
process.stdin.on("end", () => process.exit(0));
