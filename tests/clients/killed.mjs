// Prints `started` in the middle of a turn, and then what the client delivered over a kill of the server.
import process from 'node:process';
import { Clawdforge, textOf } from '../../clients/javascript/client.js';

const forge = new Clawdforge(process.env.URL, process.env.TOKEN);
const session = await forge.createSession({ agent: 'mock' });
const turn = session.prompt(JSON.stringify({ steps: [{ burst: { count: 50, text: 'x' } }, { hang: true }] }));
const entries = [];
for await (const entry of turn) {
	entries.push(entry);
	if (entries.filter(textOf).length === 50 && entry.type === 'event') console.log('started');
}
const error = await turn.result().catch(error => error);
const again = await session.ask('again');
console.log(
	JSON.stringify({ seqs: entries.map(entry => entry.seq), code: error.code, again: again.text, id: session.id })
);
forge.close();
