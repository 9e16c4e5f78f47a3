import { pretty } from '../normalise.js'
import { copyButton } from './code.js'
import { oncePerFrame, setChildren, setText, template, View } from './dom.js'
import { plural } from './format.js'

const SHOWN = 300

export class FramesView extends View {
	constructor(_, onclose) {
		super('frames', { rows: new WeakMap() })
		this.close.before(
			copyButton(
				() =>
					this.#matching()
						.map(({ text }) => text)
						.join('\n'),
				'Copy all'
			)
		)
		this.close.onclick = onclose
		this.filter.oninput = () => this.draw()
		this.draw = oncePerFrame(() => this.#draw())
	}

	show(session) {
		this.off?.()
		this.session = session
		this.el.hidden = !session
		this.off = session?.on('frame', this.draw)
		this.draw()
	}

	#matching() {
		const wanted = this.filter.value.toLowerCase()
		return this.session.frames.filter(({ text }) => text.toLowerCase().includes(wanted))
	}

	#draw() {
		if (!this.session) return
		const { scrollHeight, scrollTop, clientHeight } = this.list
		const frames = this.#matching()
		setChildren(
			this.list,
			frames.slice(-SHOWN).map(frame => this.#row(frame))
		)
		setText(this.count, plural(frames.length, 'frame'))
		if (scrollHeight - scrollTop - clientHeight < 40) this.list.scrollTop = this.list.scrollHeight
	}

	#row(frame) {
		if (!this.rows.has(frame)) this.rows.set(frame, rowView(frame))
		return this.rows.get(frame)
	}
}

function rowView({ dir, text, ts }) {
	const find = pattern => pattern.exec(text)?.[1] ?? ''
	const type = [find(/"type":\s*"(\w+)"/), find(/"sessionUpdate":\s*"(\w+)"/)].join(' ')
	const { el, details, summary, pre } = template('frame')
	details.ontoggle = () => setText(pre, pretty(JSON.parse(text)))
	el.dataset.dir = dir
	const cells = [dir === 'up' ? '↑' : '↓', find(/"seq":\s*(\d+)/), type, new Date(ts).toISOString().slice(11, 23)]
	for (const [index, cell] of cells.entries()) setText(summary.children[index], cell)
	details.append(copyButton(() => text))
	return el
}
