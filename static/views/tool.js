// The body is built on opening, because there may be thousands of calls
import { pretty } from '../normalise.js'
import { isOpen } from './ask.js'
import { commandOf, contentView, hasDiff, locationsView, section } from './call.js'
import { titleOf } from './calltitle.js'
import { codeBlock } from './code.js'
import { guard, h, hint, icon, say, setChildren, setText, toggler, View, word } from './dom.js'
import { duration } from './format.js'
import { PermissionView } from './permission.js'
import { TerminalView } from './terminal.js'

export class ToolView extends View {
	constructor(item, context, live) {
		super('tool', { item, context, live, parts: new Map(), asks: new Map() })
		this.toggle = toggler(this.line, this.body, () => this.#showBody())
		this.update()
	}

	update() {
		const { permissions } = this.item
		const waits = permissions.some(isOpen)
		for (const permission of permissions) this.#permission(permission)
		this.#head(waits)
		const { toggle } = this
		if (!toggle.touched && !waits && this.live && (this.item.toolKind === 'execute' || hasDiff(this.item)))
			toggle.open()
		else if (!this.body.hidden) this.#showBody()
	}

	#head(waits) {
		const { toolKind, abandoned, status, startedAt, endedAt } = this.item
		const state = waits ? 'asking' : abandoned && !endedAt ? 'stopped' : status
		const { dataset } = this.el
		if (dataset.kind !== toolKind) this.icon.replaceChildren(icon(word('kind', toolKind) ?? 'wrench'))
		if (dataset.state !== state) {
			const mark = word('mark', state)
			const words = word('tool', mark ? state : 'in_progress')
			this.state.replaceChildren(mark ? icon(mark) : h('span.spinner'), h('span.offscreen', { text: words }))
		}
		Object.assign(dataset, { kind: toolKind, state })
		setText(this.title, titleOf(this.item))
		setText(this.time, endedAt - startedAt >= 1000 ? duration(endedAt - startedAt) : '')
	}

	#permission(permission) {
		const { requestId } = permission
		if (!this.asks.has(requestId)) {
			const view = new PermissionView(permission, this.context)
			this.asks.set(requestId, view)
			this.el.append(view.el)
		}
		this.asks.get(requestId).update()
	}

	#showBody() {
		guard(
			() => this.#drawBody(),
			() => this.body.replaceChildren(codeBlock(pretty(this.item), 'json').el)
		)
	}

	#drawBody() {
		const { item } = this
		const { locations, content, input, output, terminal } = item
		const command = item.toolKind === 'execute' ? commandOf(item) : ''
		const printed = printedBy(item)
		const parts = []
		const part = (name, data, build) => {
			const known = this.parts.get(name)
			if (!known || (known.data !== data && JSON.stringify(known.data) !== JSON.stringify(data)))
				this.parts.set(name, {
					data,
					el: guard(
						() => build(data),
						() => codeBlock(pretty(data), 'json').el
					)
				})
			parts.push(this.parts.get(name).el)
		}
		if (locations.length && !hasDiff(item)) part('locations', locations, locationsView)
		if (command) part('command', command, text => codeBlock(pretty(text), 'bash').el)
		for (const [index, one] of content.entries()) {
			if (printed == null || (one.type !== 'terminal' && one.content?.type !== 'text'))
				part(index, one, data => contentView(data, this.context.cwd()))
		}
		if (printed != null) {
			this.terminal ??= new TerminalView()
			this.terminal.update(printed)
			parts.push(this.terminal.el)
		}
		if (terminal?.exit) part('exit', `Exit code ${terminal.exit}`, hint)
		if (input !== undefined && !command && !hasDiff(item)) part('input', input, section('Input'))
		if (output !== undefined && printed == null && !content.length) part('output', output, section('Output'))
		if (!parts.length) part('none', say('the_agent'), hint)
		setChildren(this.body, parts)
	}
}

function printedBy({ terminal, toolKind, content, input, output }) {
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
