import DOMPurify from 'dompurify'
import { trusted } from '../trusted.js'
import { h, refill } from './dom.js'

const MAX_LENGTH = 4000
const MAX_KEPT = 500
const SAFE = {
	USE_PROFILES: { mathMl: true },
	FORBID_ATTR: ['style', 'class', 'href', 'id'],
	FORBID_CONTENTS: ['annotation'],
	RETURN_DOM_FRAGMENT: true,
	TRUSTED_TYPES_POLICY: trusted
}

let katex = null
const drawn = new Map() // a growing answer repeats its formulas

export function formulaView(text, display) {
	const el = h(
		display ? 'span.formula.display' : 'span.formula',
		{ title: text, tabIndex: display && text.length > 60 ? 0 : null },
		h('code', { text })
	)
	if (text.length > MAX_LENGTH) return el
	if (katex) draw(el, text, display)
	else
		import('katex').then(
			module => {
				katex = module.default
				draw(el, text, display)
			},
			() => {}
		)
	return el
}

function draw(el, text, display) {
	try {
		refill(el, DOMPurify.sanitize(mathml(text, display), SAFE))
	} catch {
		el.classList.add('wrong') // the source stays visible
	}
}

function mathml(text, displayMode) {
	const key = `${displayMode} ${text}`
	if (!drawn.has(key)) {
		drawn.set(
			key,
			katex.renderToString(text, {
				displayMode,
				output: 'mathml',
				trust: false,
				strict: 'ignore',
				maxSize: 20,
				maxExpand: 300
			})
		)
		if (drawn.size > MAX_KEPT) drawn.delete(drawn.keys().next().value)
	}
	return drawn.get(key)
}
