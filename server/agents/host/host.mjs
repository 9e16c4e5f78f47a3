// The acpx host: one warm process that embeds acpx's runtime for all sessions.
//
// Lines of JSON on stdin are calls, `{id, op, ...}`. The responses on stdout are
// `{id, result}` or `{id, error: {code, message}}`. The first call is `init`.
// `{event: "spawned", key, pid}` announces an agent before it runs: only such a
// pid may hand its stdio over to the server. stderr goes to the server's log.

import { unlink } from 'node:fs/promises';
import { createRequire, flushCompileCache } from 'node:module';
import path from 'node:path';
import process from 'node:process';

import { AcpxRuntime, BUILT_IN_AGENT_PACKAGES, createAgentRegistry, createFileSessionStore } from './acpx.mjs';
import { launchesOf } from './launches.mjs';
import { keepRecords } from './records.mjs';

// A timer's longest delay. The server ends turns; acpx must not.
const FOREVER_MS = 2 ** 31 - 1;
// The silence for which acpx waits after an agent's response. None is needed:
// acpx does not receive a turn's updates, and the server handles late ones.
const DRAIN_IDLE_MS = 0;

// The cache is for this process only, not for agents.
delete process.env.NODE_COMPILE_CACHE;

const handles = new Map();
let runtime;
let registry;
let records;
let stateDir;

function send(message) {
	process.stdout.write(`${JSON.stringify(message)}\n`);
}

function log(text) {
	process.stderr.write(`${text}\n`);
}

/** acpx's registry, with the server's launcher in front of every agent's command. */
function launchedRegistry(config) {
	let inner, launcher;
	const configure = ({ agents, launcher: program }) => {
		inner = createAgentRegistry({ overrides: agents });
		launcher = program;
	};
	configure(config);
	return {
		configure,
		list: () => inner.list(),
		inspect: name => inner.inspect(name),
		resolve(name) {
			const launch = inner.inspect(name)?.launch;
			const argv = launch?.kind === 'installed' ? launch.argv : inner.resolve(name);
			return [...launcher, ...(Array.isArray(argv) ? argv : argv.split(' '))];
		}
	};
}

/**
 * acpx waits for a second of silence after an agent's response, and lists an
 * agent's descendants with a helper process at every start and close. The server
 * ends turns at the response and kills the descendants itself, so both are
 * disabled. They are internals of acpx: if they are not as expected, they stay
 * unchanged.
 */
function tune(client) {
	if (typeof client.waitForSessionUpdatesIdle !== 'function' || !('agentDescendants' in client)) {
		return false;
	}
	const wait = client.waitForSessionUpdatesIdle.bind(client);
	client.waitForSessionUpdatesIdle = options => wait(options?.idleMs ? { ...options, idleMs: DRAIN_IDLE_MS } : options);
	client.agentDescendants = { get: () => undefined, set: () => {} };
	return true;
}

async function tunedManager(options) {
	// The manager is private in acpx.
	const runtime = /** @type {any} */ (new AcpxRuntime(options));
	/** @type {any} */
	const Manager = (await runtime.getManager()).constructor;
	if (typeof Manager.prototype.createClient !== 'function') return undefined;
	class TunedManager extends Manager {
		createClient(clientOptions) {
			const client = super.createClient(clientOptions);
			tune(client);
			return client;
		}
	}
	const probe = new Manager(options).createClient({
		agentCommand: 'true',
		cwd: options.cwd,
		permissionMode: 'deny-all'
	});
	return tune(probe) ? Reflect.construct(TunedManager, [options]) : undefined;
}

const operations = {
	async init({ config }) {
		stateDir = config.stateDir;
		registry = launchedRegistry(config);
		records = keepRecords(createFileSessionStore({ stateDir }), error =>
			log(`a record was not stored: ${error.message}`)
		);
		/** @type {any} */
		const options = {
			cwd: config.cwd,
			sessionStore: records,
			agentRegistry: registry,
			// The server handles permission requests; acpx should not receive any.
			permissionMode: 'deny-all',
			nonInteractivePermissions: 'deny',
			fs: false,
			terminal: false,
			timeoutMs: config.startTimeoutMs,
			processLifecycle: {
				onSpawned: ({ pid, scope }) => send({ event: 'spawned', pid, key: scope.sessionKey ?? null })
			}
		};
		const manager = await tunedManager(options);
		if (!manager) {
			log('acpx is not built as expected: turns may follow each other a second later');
		}
		runtime = new AcpxRuntime(options, manager && { managerFactory: () => /** @type {any} */ (manager) });
		const { version } = createRequire(import.meta.url)('acpx/package.json');
		setTimeout(flushCompileCache, 1000).unref(); // for the next host
		return { acpx: version, node: process.versions.node, pid: process.pid };
	},

	/** The server was reloaded, and may have other agents. */
	configure({ config }) {
		registry.configure(config);
		return {};
	},

	agents({ only }) {
		return launchesOf(
			registry,
			BUILT_IN_AGENT_PACKAGES,
			registry.list().filter(name => (only ?? name) === name)
		);
	},

	inspect({ agent }) {
		return registry.inspect(agent)?.launch ?? null;
	},

	/** Open the session. acpx starts the agent of a new session, but not of a stored one. */
	async open({ key, agent, cwd, options, fresh }) {
		const input = { sessionKey: key, agent, cwd, mode: 'persistent', sessionOptions: options };
		const record = await records.load(key);
		// The data folder was moved. acpx would begin a new conversation; the agent may still load the old one.
		if (record && record.cwd !== cwd) await records.save({ ...record, cwd });
		if (fresh) await runtime.prepareFreshSession({ handle: handles.get(key) });
		handles.set(key, await runtime.ensureSession(input));
		await records.flush(key);
		return {};
	},

	async prompt({ key, id, blocks }) {
		const turn = runtime.startTurn({
			handle: handles.get(key),
			text: blocks,
			mode: 'prompt',
			requestId: String(id),
			timeoutMs: FOREVER_MS
		});
		await turn.closeStream();
		const result = await turn.result;
		if (result.status === 'failed') throw result.error;
		return {};
	},

	async set_mode({ key, mode }) {
		await runtime.setMode({ handle: handles.get(key), mode });
		await records.flush(key);
		return {};
	},

	async set_model({ key, model }) {
		await runtime.setModel({ handle: handles.get(key), model });
		await records.flush(key);
		return {};
	},

	async set_config_option({ key, option, value }) {
		await runtime.setConfigOption({ handle: handles.get(key), key: option, value });
		await records.flush(key);
		return {};
	},

	/** The agent's own id of the session, or null. */
	async conversation({ key }) {
		const record = await records.load(key).catch(() => null);
		return record?.acpSessionId ?? null;
	},

	/** Store a record for the session `to`, whose agent resumes the conversation. */
	async adopt({ key, to, cwd, conversation }) {
		const record = await records.load(key);
		if (!record) throw new Error('the session has no record');
		delete record.pid;
		delete record.agentStartedAt;
		delete record.agentSessionId;
		await records.save({ ...record, acpxRecordId: to, name: to, acpSessionId: conversation, cwd, closed: false });
		await records.release(to);
		return {};
	},

	/** End the agent and keep the record, so that a later prompt resumes. */
	async close({ key }) {
		const handle = handles.get(key);
		handles.delete(key);
		if (handle) await runtime.close({ handle, reason: 'server' });
		await records.release(key);
		return {};
	},

	async forget({ key }) {
		handles.delete(key);
		await records.forget(key);
		await unlink(path.join(stateDir, 'sessions', `${encodeURIComponent(key)}.json`)).catch(error => {
			if (error.code !== 'ENOENT') throw error;
		});
		return {};
	},

	ping() {
		return {};
	},

	async shutdown() {
		await runtime?.shutdown();
		await records?.flushAll();
		return {};
	}
};

async function handle(call) {
	try {
		send({ id: call.id, result: await operations[call.op](call) });
	} catch (error) {
		send({
			id: call.id,
			error: {
				code: error?.detailCode ?? error?.code ?? 'RUNTIME',
				message: String(error?.message ?? error)
			}
		});
	}
}

process.on('unhandledRejection', (/** @type {any} */ error) => log(`unhandled rejection: ${error?.stack ?? error}`));
let begun = []; // the pieces of an incomplete line
process.stdin.setEncoding('utf8');
process.stdin
	.on('data', (/** @type {any} */ chunk) => {
		// `readline` would also split lines at U+2028, which is valid in JSON.
		const [first, ...others] = chunk.split('\n');
		begun.push(first);
		for (const next of others) {
			handle(JSON.parse(begun.join('')));
			begun = [next];
		}
	})
	// The server has ended.
	.on('end', () => process.exit(0));
