import { promptParts, promptText } from '../transcript.js'
import { Attachments } from './attachments.js'
import { say, template, View } from './dom.js'
import { Suggestions } from './suggestions.js'

const UNDOABLE = 50_000 // characters
const TOUCH = globalThis.matchMedia?.('(hover: none) and (pointer: coarse)')
const joined = (...texts) => texts.filter(Boolean).join('\n\n')

export class Composer extends View {
	constructor({ on, upload, placeholder, label = 'Message', controls, draft }) {
		super('composer', { on, draft, running: false, at: null, stash: '', edits: new Map() })
		const { input, picker } = this
		Object.assign(input, {
			placeholder,
			ariaLabel: label,
			oninput: () => this.#typed(),
			onkeydown: event => this.#key(event),
			onpaste: event => this.paste(event)
		})
		input.enterKeyHint = TOUCH?.matches ? 'enter' : 'send'
		this.attachments = new Attachments(this.attached, upload, () => this.#attached(), draft.read('attached'))
		this.suggestions = new Suggestions(this.offered, input, {
			commands: () => on.commands?.() ?? [],
			paths: on.paths,
			take: (from, text, path) => {
				this.#insert(from, text)
				if (path) this.attachments.link(on.link(path))
			}
		})
		this.clip.onclick = () => picker.click()
		picker.onchange = () => {
			this.add([...picker.files])
			picker.value = ''
		}
		this.controls.append(controls)
		this.stop.onclick = () => on.stop()
		this.go.onclick = () => this.send()
		this.text = draft.read() ?? ''
	}

	focus() {
		this.input.focus()
	}
	get text() {
		return this.input.value
	}
	set text(value) {
		this.#replace(value)
		this.#changed()
	}
	get empty() {
		return !this.text.trim() && !this.attachments.items.length
	}
	add(files) {
		this.attachments.add(files)
		this.focus()
	}

	setRunning(running) {
		if (this.running === running) return
		if (this.stop === document.activeElement) this.focus()
		this.running = running
		this.#buttons()
	}

	setPurpose(purpose) {
		if (this.purpose === purpose) return
		this.purpose = purpose
		this.#buttons()
	}

	send() {
		if (this.go.disabled) return
		const text = this.text.trim()
		const { blocks, files } = this.attachments.contents
		const words = text || (blocks.length ? '' : say('please_look'))
		this.on.send({ prompt: [...(words ? [{ type: 'text', text: words }] : []), ...blocks], files })
	}

	clear() {
		const { stash } = this
		this.attachments.clear()
		this.edits.clear()
		Object.assign(this, { at: null, stash: '' })
		this.text = stash
		this.suggestions.update()
	}

	put({ prompt, files = [] }) {
		const written = this.at === null ? this.text : joined(this.text, this.stash)
		Object.assign(this, { at: null, stash: '' })
		this.focus()
		this.text = joined(promptText(prompt), written)
		this.attachments.put(promptParts(prompt).others, files)
	}

	// In place of the text from there to the caret
	#insert(from, text) {
		const { input } = this
		this.focus()
		input.setSelectionRange(from, input.selectionEnd)
		if (document.execCommand('insertText', false, text)) return
		input.setRangeText(text, from, input.selectionEnd, 'end')
		this.#typed()
	}

	#replace(value) {
		const { input } = this
		if (input.value === value) return
		if (input === document.activeElement && Math.max(value.length, input.value.length) < UNDOABLE) {
			this.replacing = true
			input.select()
			document.execCommand(value ? 'insertText' : 'delete', false, value)
			this.replacing = false
		}
		if (input.value !== value) input.value = value
	}

	#buttons() {
		const words = this.purpose ?? (this.running ? say('send_next') : 'Send')
		this.go.disabled = this.empty || this.attachments.blocked
		this.go.title = this.attachments.blocked ? say('waiting') : TOUCH?.matches ? words : `${words} (Enter)`
		this.go.ariaLabel = words
		this.stop.hidden = !this.running
		this.go.hidden = this.running && this.empty
		this.on.change?.()
	}

	#changed() {
		if (!CSS.supports('field-sizing', 'content')) {
			this.input.style.height = 'auto'
			this.input.style.height = `${this.input.scrollHeight}px`
		}
		this.#buttons()
		const recalled = this.at !== null && !this.edits.has(this.at)
		this.draft.save(joined(recalled ? '' : this.text, this.stash))
	}

	#attached() {
		this.#buttons()
		this.draft.save(this.attachments.saved, 'attached')
	}

	#typed() {
		if (this.replacing) return
		if (this.at !== null) this.edits.set(this.at, this.text)
		this.#changed()
		this.suggestions.update()
	}

	#key(event) {
		// An input method; WebKit marks its last key by the code.
		if (event.isComposing || event.keyCode === 229) return event.stopPropagation()
		if (this.suggestions.key(event)) return
		const { key, shiftKey, altKey, ctrlKey, metaKey, repeat } = event
		const sends = key === 'Enter' && !shiftKey && !altKey && (ctrlKey || metaKey || !TOUCH?.matches)
		if (sends) repeat || this.send()
		else if (!this.#history(event)) return
		event.preventDefault()
	}

	#history({ key, shiftKey, altKey, ctrlKey, metaKey }) {
		const up = key === 'ArrowUp'
		const { selectionStart: caret, selectionEnd, value } = this.input
		if ((!up && key !== 'ArrowDown') || shiftKey || altKey || ctrlKey || metaKey || caret !== selectionEnd) return false
		if ((up ? value.slice(0, caret) : value.slice(caret)).includes('\n')) return false
		if (up ? this.at === 0 || (this.at === null && caret > 0) : this.at === null) return false
		const past = this.on.history?.() ?? []
		if (!past.length) return false
		if (this.at === null) this.stash = value
		const next = (this.at ?? past.length) + (up ? -1 : 1)
		const { stash } = this
		this.at = next < past.length ? next : null
		if (this.at === null) this.stash = ''
		this.text = this.at === null ? stash : (this.edits.get(next) ?? past[next])
		const end = up ? 0 : this.text.length
		this.input.setSelectionRange(end, end)
		return true
	}

	paste(event) {
		const files = [...event.clipboardData.files]
		const text = event.clipboardData.getData('text/plain')
		// A copied table is both text and an image.
		if (files.length && !text) {
			event.preventDefault()
			this.add(files)
		} else if (event.target !== this.input && text) {
			event.preventDefault()
			this.focus()
			document.execCommand('insertText', false, text)
		}
	}
}

export function dropTarget(area, take) {
	const veil = area.appendChild(template('drop').el)
	for (const name of ['dragover', 'dragleave', 'drop']) {
		area.addEventListener(name, event => {
			if (!event.dataTransfer?.types.includes('Files') || area.contains(event.relatedTarget)) return
			event.preventDefault()
			veil.hidden = name !== 'dragover'
			if (name === 'drop') take([...event.dataTransfer.files])
		})
	}
}
