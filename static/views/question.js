// A form or a link
import { AskView } from './ask.js'
import { exactNodes, h, hint, say, setText, word } from './dom.js'
import { dotted } from './format.js'

const LONG = 200 // characters

export class QuestionView extends AskView {
	constructor(item, context) {
		super('question', item, context, 'asks you')
		this.skip.onclick = () => this.send({ action: 'decline' })
		this.el.onsubmit = event => this.#submit(event)
		this.update()
	}

	draw({ message, url, fields }) {
		this.details.append(h('p.asked', { dir: 'auto', text: message }))
		this.fields = fields.map(one => ({ ...one, ...fieldOf(one) }))
		if (url === null) return this.details.append(...this.fields.map(({ el }) => el))
		// As the browser opens it: look-alike letters of a name are spelled out
		const { protocol, href, host } = URL.parse(url) ?? {}
		this.link = /^https?:$/.test(protocol) && href
		this.yes.hidden = !this.link
		setText(this.yes, 'Open the link')
		this.details.append(
			h('p.asked.path-whole', {}, exactNodes(this.link || url)),
			hint(this.link ? `It leads to ${host}` : say('this_page'))
		)
	}

	#submit(event) {
		event.preventDefault()
		const content = {}
		for (const { name, read } of this.fields) content[name] = read()
		if (this.link) open(this.link, '_blank', 'noopener,noreferrer')
		if (this.el.reportValidity()) this.send({ action: 'accept', ...(!this.link && { content }) })
	}

	complain({ field, message }) {
		setText(this.note, message)
		const [input] = this.fields.find(({ name }) => name === field)?.inputs ?? []
		input?.setCustomValidity(message)
		input?.reportValidity()
	}

	words({ message, outcome, done }) {
		const told = Object.entries(outcome?.content ?? {}).map(([name, value]) => `${name}: ${[value].flat().join(', ')}`)
		return dotted([message, word('outcome', outcome?.action) ?? 'Not answered', ...told, done && 'Done'])
	}
}

let groups = 0

function fieldOf({ type, format, title, description, choices, multiple, required, given, low, high }) {
	const kind = choices ? (multiple ? 'checkbox' : 'radio') : (word('input', format) ?? word('input', type))
	const box = /^(checkbox|radio)$/.test(kind)
	const name = `field-${(groups += 1)}`
	const inputs = (choices ?? [{ value: box || given, title: 'Yes' }]).map(({ value }) =>
		h(kind === 'text' && !(high <= LONG) ? 'textarea' : 'input', {
			...{ type: kind, name, label: box ? null : title, dir: 'auto', required: required && kind !== 'checkbox' },
			// Each is ignored by the kinds that have no such limit
			...{ min: low, max: high, minlength: low, maxlength: high, step: type === 'integer' ? 1 : 'any' },
			...{ value: value ?? '', checked: box && [given].flat().includes(value) },
			oninput: () => inputs[0].setCustomValidity('')
		})
	)
	const read = () => {
		const values = inputs.filter(({ checked, value }) => (box ? checked : value)).map(({ value }) => value)
		if (multiple && (required || values.length)) {
			const wrong = values.length < low || values.length > (high ?? Infinity)
			inputs[0]?.setCustomValidity(wrong ? `Choose ${low ?? 0} to ${high ?? choices.length}.` : '')
			return values
		}
		if (type === 'boolean') return inputs[0].checked
		const [value] = values
		if (value === undefined || type === 'string') return format === 'date-time' && value ? new Date(value) : value
		return Number(value)
	}
	const rows = box
		? (choices ?? [{ title: 'Yes' }]).map(({ title: words, description: about }, index) =>
				h('label.check', {}, inputs[index], h('span', { text: words }), h('small', { text: about }))
			)
		: inputs
	const legend = h('legend', {}, title, required && ' *', h('small', { text: description }))
	const el = h('fieldset.field', {}, legend, kind ? rows : hint(say('this_page_2')))
	return { inputs: kind ? inputs : [], read: kind ? read : () => {}, el }
}
