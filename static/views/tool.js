// The body is built on opening, because there may be thousands of calls
import { pretty } from '../normalise.js'
import { nowOf, textOf, waits } from '../transcript.js'
import { contentView, hasDiff, locationsView, section } from './call.js'
import { titleOf } from './calltitle.js'
import { codeBlock } from './code.js'
import { commandOf, printedBy } from './command.js'
import { guard, h, hint, icon, refill, say, setChildren, setText, toggler, View, word } from './dom.js'
import { dotted, duration } from './format.js'
import { PermissionView } from './permission.js'
import { TerminalView } from './terminal.js'
import { ThreadView } from './thread.js'

export class ToolView extends View {
	constructor(item, context, live) {
		super('tool', { item, context, live, parts: new Map(), asks: new Map() })
		this.toggle = toggler(this.line, this.body, () => this.#show())
		this.update()
	}

	update() {
		const { item, toggle, body, context } = this
		const asks = waits(item)
		for (const permission of item.permissions) this.#permission(permission)
		this.#head(asks)
		const folds = item.status === 'completed' && context.isLong(item)
		const runs = item.toolKind === 'execute' && (item.input !== undefined || item.content.length > 0 || item.terminal)
		const open = !asks && this.live && !item.items && (runs || hasDiff(item)) && !folds
		if (!toggle.touched && open === body.hidden) toggle.show(open)
		else this.#show()
	}

	#head(asks) {
		const { items, toolKind, abandoned, status, startedAt, endedAt } = this.item
		const kind = items ? 'subagent' : toolKind
		const state = asks ? 'asking' : abandoned && !endedAt ? 'stopped' : status
		const mark = word('mark', state)
		const words = word('tool', mark ? state : 'in_progress')
		const { dataset } = this.el
		if (dataset.kind !== kind || dataset.state !== state) {
			refill(this.icon, icon(word('kind', kind) ?? 'wrench'))
			refill(
				this.state,
				mark ? icon(mark) : h('span.spinner'),
				items ? '' : h('span.offscreen', { text: words }) // the title has it
			)
		}
		Object.assign(dataset, { kind, state })
		const now = items && !mark && nowOf(this.item)
		setText(this.title, dotted([titleOf(this.item), items && words.toLowerCase(), now && `now: ${titleOf(now)}`]))
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

	#show() {
		const { item, context, body } = this
		if (item.items) {
			if (!this.thread) this.line.after((this.thread = new ThreadView(item, context)).el)
			this.thread.update(!body.hidden)
		}
		if (body.hidden) return
		guard(
			() => this.#drawBody(),
			() => refill(body, codeBlock(pretty(item), 'json').el)
		)
	}

	#drawBody() {
		const { item } = this
		const { items, locations, content, input, output, terminal } = item
		const said = items && textOf(items.findLast(({ kind }) => kind === 'message')?.parts)
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
			if (said && one.content?.text === said) continue // the subagent's answer
			if (printed == null || (one.type !== 'terminal' && one.content?.type !== 'text'))
				part(index, one, data => contentView(data, this.context.cwd()))
		}
		if (printed != null) {
			this.terminal ??= new TerminalView()
			this.terminal.update(printed)
			parts.push(this.terminal.el)
		}
		if (terminal?.exit) part('exit', `Exit code ${terminal.exit}`, hint)
		if (input !== undefined && !items && !command && !hasDiff(item)) part('input', input, section('Input'))
		if (output !== undefined && printed == null && !content.length) part('output', output, section('Output'))
		if (!parts.length && !items) part('none', say('the_agent'), hint)
		setChildren(this.body, parts)
	}
}
