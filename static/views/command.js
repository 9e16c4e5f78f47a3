// Commands that agents run, and what they print. No DOM
import { plain } from './ansi.js'

const MAX_LOOKED = 10_000 // characters
const PLAIN = /^[\w@%+=:,./-]+$/

export function commandOf({ input }) {
	const command = input?.command ?? input?.cmd
	if (typeof command === 'string') return command
	const words = Array.isArray(command) && command.length && command.every(word => typeof word === 'string')
	return words ? command.map(word => (PLAIN.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(' ') : ''
}

const TESTS =
	/(?:^|[;&|(]) *(?:\w+=\S* )*(?:\S*\/)?(?:(?:npm|pnpm|yarn|bun|make|cargo|go|dotnet|mvn|mix) (?:run )?tests?\b|(?:\w+ run |npx |python3? -m )?(?:pytest|jest|vitest|mocha|rspec|ctest|tox)\b)/
const FAILURES = /\b[1-9]\d* (?:failed|failures?|errors?)\b|\bFAIL(?:ED|URES?)?\b/

// The result of the last command that ran tests
/** @param {Props} turn */
export function testsOf({ items }) {
	const last = items.findLast(
		one => one.toolKind === 'execute' && one.endedAt && TESTS.test(commandOf(one) || one.title.replaceAll('`', ''))
	)
	if (!last) return ''
	const { status, terminal } = last
	const failed = terminal?.exit ?? FAILURES.test(plain((printedBy(last) ?? '').slice(-MAX_LOOKED)))
	return failed || status === 'failed' ? 'tests failed' : 'tests passed'
}

// The output of a command
export function printedBy({ terminal, toolKind, content, input, output }) {
	if (terminal?.output) return terminal.output
	if (toolKind !== 'execute') return null
	const text = content
		.filter(one => one.content?.type === 'text')
		.map(one => one.content.text)
		.join('\n')
	// Claude puts the purpose of the command there until it has output.
	if (text && text !== input?.description) return text.replace(/^\s*```\w*\n([\s\S]*?)\n?```\s*$/, '$1')
	const parts = [output, output?.stdout, output?.stderr, output?.formatted_output ?? output?.output]
	return parts.filter(part => part && typeof part === 'string').join('\n') || null
}
