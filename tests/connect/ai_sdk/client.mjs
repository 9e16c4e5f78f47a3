// A client on the Vercel AI SDK: one answer at once and one as a stream, as JSON on stdout.

import process from 'node:process';
import { createACPProvider } from '@mcpc-tech/acp-ai-provider';
import { generateText, streamText } from 'ai';

const [command, ...args] = JSON.parse(process.env.COMMAND);
const { CLAWDFORGE_TOKEN, CLAWDFORGE_URL } = process.env;
const provider = createACPProvider({
	command,
	args,
	env: { CLAWDFORGE_TOKEN, CLAWDFORGE_URL },
	session: { cwd: process.cwd(), mcpServers: [] }
});
const model = provider.languageModel();
const { text, finishReason } = await generateText({ model, prompt: 'hello', tools: provider.tools });
let streamed = '';
const { textStream } = streamText({ model, prompt: 'again', tools: provider.tools });
for await (const chunk of textStream) streamed += chunk;
process.stdout.write(JSON.stringify({ text, finishReason, streamed }));
process.exit(0);
