/** Where one writes. Enter sends, Shift+Enter breaks the line, arrow up recalls. */
import { Attachments } from './attachments.js';
import { CommandList } from './commands.js';
import { template } from './dom.js';

export class Composer {
	/** `on`: send({prompt, files}), and maybe stop(), commands(), history(); `draft`: {text, save} */
	constructor({ on, upload, placeholder, label = 'Message', controls, draft }) {
		Object.assign(this, template('composer'), { on, draft, running: false, at: null });
		const { input, picker } = this;
		Object.assign(input, { placeholder, ariaLabel: label, oninput: () => this.#typed(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event) });
		this.attachments = new Attachments(this.attached, upload, () => this.#buttons());
		this.commands = new CommandList(this.offered, input, () => on.commands?.() ?? [], (text) => ((this.text = text), this.focus()));
		this.clip.onclick = () => picker.click();
		picker.onchange = () => (this.add([...picker.files]), (picker.value = ''));
		this.controls.append(controls);
		this.stop.onclick = () => on.stop();
		this.go.onclick = () => this.send();
		this.text = draft.text;
	}

	focus() {
		this.input.focus();
	}
	get text() {
		return this.input.value;
	}
	set text(value) {
		this.input.value = value;
		this.#changed();
	}
	add(files) {
		this.attachments.add(files);
		this.focus();
	}

	setRunning(running) {
		if (this.running === running) return;
		if (this.stop === document.activeElement) this.focus();
		this.running = running;
		this.#buttons();
	}

	send() {
		if (this.go.disabled) return;
		const text = this.text.trim();
		const { blocks, files } = this.attachments.contents;
		const words = text || (blocks.length ? '' : 'Please look at the attached files.');
		this.on.send({ prompt: [...(words ? [{ type: 'text', text: words }] : []), ...blocks], files });
	}

	/** What was written has gone out. */
	clear() {
		this.attachments.clear();
		this.text = '';
		this.at = null;
		this.commands.update();
	}

	/** A prompt comes back to be changed, above what is being written. */
	put(text, blocks, files) {
		this.text = [text, this.text].filter(Boolean).join('\n\n');
		this.attachments.put(blocks, files);
		this.focus();
	}

	#buttons() {
		const empty = !this.text.trim() && !this.attachments.items.length;
		const words = this.running ? 'Send next: it waits until this turn is over' : 'Send';
		this.go.disabled = empty || this.attachments.blocked;
		this.go.title = this.attachments.blocked ? 'Waits for the attached files' : `${words} (Enter)`;
		this.go.ariaLabel = words;
		this.stop.hidden = !this.running;
		this.go.hidden = this.running && empty;
	}

	#changed() {
		if (!CSS.supports('field-sizing', 'content')) {
			this.input.style.height = 'auto';
			this.input.style.height = `${this.input.scrollHeight}px`;
		}
		this.#buttons();
		this.draft.save(this.text);
	}

	#typed() {
		this.at = null;
		this.#changed();
		this.commands.update();
	}

	#key(event) {
		// While an input method is at work, its keys are not ours. WebKit tells the last only by its code.
		if (event.isComposing || event.keyCode === 229) return event.stopPropagation();
		if (this.commands.key(event)) return;
		if (event.key === 'Enter' && !event.shiftKey && !event.altKey) this.send();
		else if (!this.#history(event)) return;
		event.preventDefault();
	}

	/** The arrows move through earlier prompts, but only at the edge of the text. */
	#history({ key, shiftKey }) {
		const up = key === 'ArrowUp';
		const { selectionStart: caret, selectionEnd, value } = this.input;
		if ((!up && key !== 'ArrowDown') || shiftKey || caret !== selectionEnd) return false;
		if ((up ? value.slice(0, caret) : value.slice(caret)).includes('\n')) return false;
		if (up ? this.at === 0 || (this.at === null && caret > 0) : this.at === null) return false;
		const past = this.on.history?.() ?? [];
		if (!past.length) return false;
		if (this.at === null) this.saved = value;
		const next = (this.at ?? past.length) + (up ? -1 : 1);
		this.text = past[next] ?? this.saved;
		this.at = next < past.length ? next : null;
		const end = up ? 0 : this.text.length;
		this.input.setSelectionRange(end, end);
		return true;
	}

	#paste(event) {
		const files = [...event.clipboardData.files];
		// A copied table is both text and picture; then the text is meant.
		if (!files.length || event.clipboardData.getData('text/plain')) return;
		event.preventDefault();
		this.add(files);
	}
}

/** Makes an area take dropped files; while one drags them over it, it says so. */
export function dropTarget(area, take) {
	const veil = area.appendChild(template('drop').el);
	for (const name of ['dragover', 'dragleave', 'drop']) {
		area.addEventListener(name, (event) => {
			if (!event.dataTransfer?.types.includes('Files') || area.contains(event.relatedTarget)) return;
			event.preventDefault();
			veil.hidden = name !== 'dragover';
			if (name === 'drop') take([...event.dataTransfer.files]);
		});
	}
}
