import { save } from '../actions.js'
import { plain, Screen } from './ansi.js'
import { copyButton } from './code.js'
import { h, iconButton, refill, setText, View } from './dom.js'
import { plural } from './format.js'

const MAX_LINES = 1000
const PIECE = 4000 // characters
const FRAME_BUDGET = 8 // ms

export class TerminalView extends View {
	constructor() {
		super('terminal')
		const whole = () => plain(this.shown)
		this.above.append(
			copyButton(whole, 'Copy all'),
			iconButton('quiet', 'down', 'Download', () => save(new Blob([whole()]), 'output.txt'))
		)
		this.#clear()
	}

	#clear() {
		Object.assign(this, { shown: '', left: '', cut: 0, screen: new Screen((line, over) => this.#line(line, over)) })
		refill(this.code, h('span'))
		this.drawn = 0
	}

	update(text) {
		const { scrollTop, scrollHeight, clientHeight } = this.el
		if (!text.startsWith(this.shown)) this.#clear()
		const more = this.left + text.slice(this.shown.length)
		const tail = tailOf(more)
		if (tail) {
			let cut = this.cut + this.code.childNodes.length - 1
			for (let at = -1; (at = more.indexOf('\n', at + 1)) >= 0 && at < tail; ) cut += 1
			this.#clear()
			this.cut = cut
		}
		this.shown = text
		this.left = more.slice(tail)
		this.#draw(scrollHeight - scrollTop - clientHeight < 8)
	}

	// The rest of a long output follows in the next frames
	#draw(follows) {
		const until = performance.now() + FRAME_BUDGET
		while (this.left && performance.now() < until) {
			const end = PIECE + (/[\uD800-\uDBFF]/.test(this.left[PIECE - 1]) ? 1 : 0)
			this.screen.write(this.left.slice(0, end))
			this.left = this.left.slice(end)
		}
		this.above.hidden = !this.cut
		setText(this.words, `${plural(this.cut, 'line')} above ${this.cut === 1 ? 'is' : 'are'} not shown`)
		if (follows) this.el.scrollTop = this.el.scrollHeight
		cancelAnimationFrame(this.asked)
		if (this.left) this.asked = requestAnimationFrame(() => this.#draw(follows))
	}

	#line({ runs, rewritten }, over) {
		const { code } = this
		const el = code.lastChild
		if (rewritten) refill(el)
		for (const { text, style } of rewritten ? runs : runs.slice(this.drawn)) {
			const span = el.appendChild(h('span', { text }))
			Object.assign(span.style, style)
			if (!style?.color || style.backgroundColor) continue
			// Agents choose colours for a dark background
			span.style.setProperty('--tint', style.color)
			span.style.color = ''
			span.classList.add('tint')
		}
		this.drawn = runs.length
		if (!over) return
		el.append('\n')
		code.append(h('span'))
		this.drawn = 0
		if (code.childNodes.length <= MAX_LINES) return
		code.firstChild.remove()
		this.cut += 1
	}
}

function tailOf(text) {
	let at = text.length
	for (let count = 0; count < MAX_LINES && at > 0; count += 1) at = text.lastIndexOf('\n', at - 1)
	return at > 0 ? at + 1 : 0
}
