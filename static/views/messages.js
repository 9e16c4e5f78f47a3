import { promptParts } from '../transcript.js'
import { contentBlock, fileChip } from './content.js'
import { guard, h, setText, toggler, View } from './dom.js'
import { duration } from './format.js'
import { MarkdownView } from './markdown.js'
import { rawView } from './notes.js'

export function promptBubble(prompt) {
	const { text, files, others } = promptParts(prompt)
	const chips = [
		...others.map(one =>
			guard(
				() => contentBlock(one),
				() => rawView(one.type, one).el
			)
		),
		...files.map(path => fileChip(path.split('/').pop(), path))
	]
	return h(
		'div.bubble',
		{},
		chips.length > 0 && h('div.chips', {}, chips),
		text &&
			h('p.plain', { dir: 'auto', prose: text, tabIndex: text.length > 300 || text.split('\n').length > 9 ? 0 : null })
	)
}

export class MessageView {
	context
	el
	item
	views
	constructor(item, context) {
		Object.assign(this, { item, context, views: [], el: h(`div.message.${item.kind}`) })
		this.update()
	}

	update() {
		const { parts, done } = this.item
		for (const [index, part] of parts.entries()) {
			let view = this.views[index]
			if (view?.finished && view.text === part.text) continue
			if (!view || view.finished) {
				view?.el.remove()
				view = this.views[index] =
					part.type === 'text' ? new MarkdownView() : { el: contentBlock(part), update: () => true }
				this.el.append(view.el)
			}
			const complete = done || index < parts.length - 1
			const drawn = view.update(part.text, complete)
			Object.assign(view, { text: part.text, finished: complete && drawn })
			if (!drawn) this.context.again(this.item)
		}
	}
}

export class ThoughtView extends View {
	constructor(item, context) {
		super('thought', { item })
		this.draw = () => {
			if (!this.text) this.body.append((this.text = new MessageView(item, context)).el)
			this.text.update()
		}
		toggler(this.line, this.body, this.draw)
		this.update()
	}

	update() {
		const { done, endedAt, startedAt } = this.item
		const took = endedAt - startedAt
		setText(this.label, !done ? 'Thinking' : took >= 1000 ? `Thought for ${duration(took)}` : 'Thought')
		this.el.classList.toggle('busy', !done)
		if (!this.body.hidden) this.draw()
	}
}
