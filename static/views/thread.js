// The work of a subagent, below its call: all of it, or only the urgent part while it is folded
import { isUrgent } from '../transcript.js'
import { setChildren, setText, View } from './dom.js'
import { plural } from './format.js'
import { promptBubble } from './messages.js'

const SHOWN = 100 // items, at first
const MORE = 400
const FRAME_BUDGET = 8 // ms

export class ThreadView extends View {
	constructor(item, context) {
		super('thread', { item, context, limit: SHOWN })
		this.older.onclick = () => {
			this.limit += MORE
			this.update(true)
		}
	}

	update(open) {
		const { context, item } = this
		const { items, input } = item
		const first = open ? Math.max(0, items.length - this.limit) : items.length
		const shown = items.filter((one, at) => at >= first || isUrgent(one))
		// The newest first, and the others in the next frames
		const until = performance.now() + FRAME_BUDGET
		const views = shown
			.toReversed()
			.map(one => context.views.get(one) ?? (performance.now() < until && context.build(one)))
			.filter(Boolean)
			.reverse()
		if (views.length < shown.length) context.again(item)
		// Without a session of its own, its task is the input of its call
		if (open && typeof input?.prompt === 'string') this.task ??= promptBubble(input.prompt)
		setText(this.older, plural(items.length - shown.length, 'earlier step'))
		setChildren(this.el, [
			...[open && this.task, open && items.length > shown.length && this.older].filter(Boolean),
			...views.map(({ el }) => el)
		])
	}
}
