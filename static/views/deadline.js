import { say, setText } from './dom.js'
import { duration } from './format.js'

const URGENT = 60_000 // ms
const SOON = 86_400_000

/** How long a request still waits, and when to say so again; null without a deadline. */
export function deadline(expiresAt, now = Date.now()) {
	if (!Number.isFinite(expiresAt)) return null
	const left = expiresAt - now
	if (left <= 0) return { words: say('too_late'), urgent: true, again: 0 }
	if (left > SOON)
		return { words: `Waits until ${new Date(expiresAt).toLocaleDateString()}`, urgent: false, again: 3_600_000 }
	const step = left > 120_000 ? 60_000 : 1000
	const shown = Math.ceil(left / step) * step
	return {
		words: `${duration(shown).replace(/ 0 s$/, '')} left to answer`,
		urgent: left < URGENT,
		again: left % step || step
	}
}

/** Shows it in an element; returns it. */
export function showDeadline(el, expiresAt, now) {
	const due = deadline(expiresAt, now)
	setText(el, due?.words ?? '')
	el.dataset.urgent = String(due?.urgent ?? false)
	return due
}
