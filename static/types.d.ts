/**
 * Types that the page's modules name in JSDoc. They are global, so that a module needs no import.
 * This file is not served: it exists only for `tsc` in `make lint`.
 */

/** An object whose fields are not declared. */
type Props = Record<string, any>;

/** A log entry, or another frame, as docs/reference/protocol.md describes them. */
interface Frame extends Props {
	type: string;
	seq?: number;
	ts?: number;
	turn_index?: number;
}

/** The model that the reducer maintains: docs/reference/browser.md. */
interface Model {
	kind: 'session';
	head: number;
	turns: Turn[];
	running: Set<number>;
	waiting: Map<string, Permission>;
	modes: { currentModeId: string | null; availableModes: Choice[] } | null;
	models: { currentModelId: string | null; availableModels: Choice[] } | null;
	configOptions: Props[] | null;
	commands: { name: string; description: string; hint: string }[] | null;
	usage: { used: number | null; size: number | null; cost: Props | null } | null;
	title: string | null;
	closed: string | null;
	/** Turns, items and the model itself, if they changed since the last drawing. */
	dirty?: Set<Turn | Item | Model>;
	byIndex?: Map<number, Turn>;
	calls?: Map<string, Item>;
	requests?: Map<string, Permission>;
	seededAt?: number;
}

interface Choice {
	id: string;
	name: string;
	description: string | null;
}

interface Turn extends Props {
	kind: 'turn';
	index: number;
	prompt: Props[];
	items: Item[];
	status: string;
	stopReason: string | null;
	error: { code: string; message: string; retryable: boolean } | null;
}

interface Item extends Props {
	kind: 'message' | 'thought' | 'user' | 'tool' | 'plan' | 'note' | 'question' | 'raw';
}

interface Permission extends Props {
	requestId: string;
	turnIndex: number;
	call: Props;
	options?: { optionId: string; name: string; kind: string }[];
}

interface WireOptions {
	url: string;
	/** Called for each connection. */
	credential: () => Promise<{ token: string } | { ticket: string }>;
	/** 0 for the whole log, a seq, or null for live from now. */
	after?: number | null;
	on?: Record<string, (...args: any[]) => void>;
	/** Replacements of WebSocket, clock and random numbers, for tests. */
	env?: Props;
}

/** What a browser test reads and controls: tests/browser/fake_socket.js. */
declare var fake: Props;

declare module '*/highlight.min.js' {
	const hljs: any;
	export default hljs;
}
