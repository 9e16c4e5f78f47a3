// Takes no focus, so that no key answers by accident
import { isOpen } from '../transcript.js'
import { showDeadline } from './deadline.js'
import { refill, say, setText, uid, View, word } from './dom.js'

export class AskView extends View {
	constructor(id, request, context, words) {
		super(id, { request, context, refused: 0 })
		setText(this.who, `${context.agentName()} ${words}`)
		this.card.setAttribute('aria-labelledby', (this.heading.id = uid()))
		const look = entries => context.seen((this.seen = entries.at(-1).intersectionRatio >= 0.5))
		new IntersectionObserver(look, { threshold: 0.5 }).observe(this.choices)
	}

	focus() {
		const field = this.card.querySelector('input, textarea') ?? this.choices.firstChild
		field.focus({ preventScroll: true })
	}

	send(answer) {
		const now = this.context.answer(this.request.requestId, answer)
		this.byKey = this.card.querySelector(':focus-visible')
		setText(this.note, now ? 'Sending your answer…' : say('your_answer'))
		this.card.disabled = true
	}

	update() {
		const { request, card } = this
		const open = isOpen(request)
		if (open && !this.drawn) {
			this.drawn = true
			this.draw(request)
			this.#tick()
		}
		if (request.refused !== this.refused) {
			this.refused = request.refused
			card.disabled = false
			setText(this.note, say('your_answer_2'))
			this.complain?.(request.problem)
		}
		if (!open) {
			if (this.byKey) this.context.focusComposer()
			this.byKey = null
			refill(this.details)
		}
		card.hidden = !open
		setText(this.result, open ? '' : this.#words())
		this.el.hidden = !open && !this.result.textContent
	}

	// How long the request waits
	#tick() {
		const due = showDeadline(this.due, isOpen(this.request) ? this.request.expiresAt : null)
		if (due?.again && (this.el.isConnected || !this.ticked)) setTimeout(() => this.#tick(), due.again)
		this.ticked = true
	}

	#words() {
		const words = this.words(this.request)
		return words && [words, word('by', this.request.by)].filter(Boolean).join(': ')
	}
}
