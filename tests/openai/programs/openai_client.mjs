// OpenAI's client for Node, with the server as its API. Prints what it received as JSON.

import { createRequire } from 'node:module';
import process from 'node:process';

const { PACKAGES, URL: url, TOKEN, PIXEL, ECHO, STREAM, FAIL, SESSION } = process.env;
const { default: OpenAI } = createRequire(`${PACKAGES}/`)('openai');
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: TOKEN, maxRetries: 0 });
const user = content => ({ role: 'user', content });
const ask = (messages, options = {}, request = {}) =>
	openai.chat.completions.create({ model: 'mock', messages, ...options }, request);
const textOf = completion => completion.choices[0].message.content;

async function errorOf(call) {
	try {
		await call();
	} catch (error) {
		return [error.constructor.name, error.code ?? null, error.status ?? null, typeof error.message];
	}
	return null;
}

async function textsOf(stream) {
	const texts = [];
	for await (const chunk of stream) {
		const text = chunk.choices[0]?.delta.content;
		if (text) texts.push(text);
	}
	return texts;
}

const models = [];
for await (const model of openai.models.list()) models.push(model.id);
const whole = await ask([user('hello')], { temperature: 0.1, max_completion_tokens: 5, user: 'someone', n: 1 });
const conversation = await ask([
	{ role: 'developer', content: 'Be brief.' },
	user('What is 2+2?'),
	{ role: 'assistant', content: '4' },
	user([{ type: 'text', text: 'And 3+3?' }])
]);
const image = { type: 'image_url', image_url: { url: `data:image/png;base64,${PIXEL}`, detail: 'low' } };
const pictures = await ask([user([image, { type: 'text', text: ECHO }])]);

const helper = openai.chat.completions.stream({
	model: 'mock',
	messages: [user(STREAM)],
	stream_options: { include_usage: true }
});
const events = [];
helper.on('content', delta => events.push(delta));
const streamed = await helper.finalChatCompletion();
const usage = await helper.totalUsage();

const headers = { 'X-Session-Id': SESSION };
const continued = [];
for (const text of ['one', 'two']) continued.push(textOf(await ask([user('earlier'), user(text)], {}, { headers })));
continued.push((await textsOf(await ask([user('three')], { stream: true }, { headers }))).join(''));

const parameters = { type: 'object', properties: {} };
const tools = [{ type: 'function', function: { name: 'nothing', parameters } }];
const withTools = await ask([user('tools')], { tools, tool_choice: 'auto', parallel_tool_calls: false });

console.log(
	JSON.stringify({
		models,
		plain: textOf(whole),
		finish: whole.choices[0].finish_reason,
		usage: whole.usage,
		conversation: textOf(conversation),
		pictures: textOf(pictures),
		pieces: events,
		streamed: textOf(streamed),
		streamedFinish: streamed.choices[0].finish_reason,
		streamedUsage: usage,
		continued,
		tools: [textOf(withTools), withTools.choices[0].finish_reason],
		missing: await errorOf(() => ask([user('x')], { model: 'none' })),
		failed: await errorOf(() => ask([user(FAIL)])),
		failedStream: await errorOf(async () => textsOf(await ask([user(FAIL)], { stream: true }))),
		stranger: await errorOf(() => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'cf_no', maxRetries: 0 }).models.list())
	})
);
