import { pretty } from '../normalise.js'
import { AskView } from './ask.js'
import { askedFor } from './call.js'
import { codeBlock } from './code.js'
import { guard, h, icon, word } from './dom.js'

export class PermissionView extends AskView {
	constructor(permission, context) {
		super('permission', permission, context, 'asks for your permission')
		const { options } = permission
		this.buttons = options.map(({ kind, name, optionId }, index) => {
			const tone = kind === 'allow_once' ? 'primary' : kind.startsWith('reject') ? 'secondary.reject' : 'secondary'
			return h(
				`button.${tone}`,
				{ onclick: () => this.send(optionId) },
				/^allow|^reject/.test(kind) && icon(kind.startsWith('allow') ? 'check' : 'close'),
				h('span', { text: name }),
				h('kbd', { text: index + 1, 'aria-hidden': 'true' })
			)
		})
		if (!options.some(({ kind }) => kind.startsWith('reject')))
			this.buttons.push(h('button.secondary.reject', { onclick: () => this.send(null) }, 'Do not allow'))
		this.choices.append(...this.buttons)
		this.card.onkeydown = event => this.#key(event)
	}

	draw({ call }) {
		const whole = () => codeBlock(pretty(call, Infinity), 'json').el
		const parts = guard(() => askedFor(call, this.context.cwd()), whole)
		this.details.append(...[parts].flat(2).filter(Boolean))
	}

	words({ outcome, by, options }) {
		const option = options.find(({ optionId }) => optionId === outcome?.optionId)
		if (by === 'policy' && option?.kind.startsWith('allow')) return ''
		return option ? (word('outcome', option.kind) ?? option.name) : 'Not allowed'
	}

	#key(event) {
		const { key, ctrlKey, metaKey, altKey } = event
		const step = { __proto__: null, ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key]
		const at = this.buttons.indexOf(document.activeElement)
		if (step && at >= 0) this.buttons.at((at + step) % this.buttons.length).focus()
		else if (/^[1-9]$/.test(key) && !ctrlKey && !metaKey && !altKey) this.buttons[key - 1]?.click()
		else return
		event.preventDefault()
	}
}
