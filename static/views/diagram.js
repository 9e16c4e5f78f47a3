// Drawn in a sandboxed frame and shown as an image, which runs no scripts
import { codeBlock } from './code.js'
import { h, say, template, whenNear } from './dom.js'

const MAX_LENGTH = 20_000 // characters of source
const MAX_PICTURE = 2_000_000 // and picture
const PATIENCE = 15_000 // ms, with the library

let frame = null
let asked = 0
let last = Promise.resolve()

function draw(source, dark) {
	const mine = last.then(() => ask(source, dark))
	last = mine.catch(() => {})
	return mine
}

function ask(source, dark) {
	frame ??= document.body.appendChild(template('diagram-frame').el)
	const mine = frame
	const id = (asked += 1)
	return new Promise((resolve, reject) => {
		const send = () => mine.contentWindow?.postMessage({ id, source, dark }, '*') // its origin is opaque
		const end = (settle, value) => {
			clearTimeout(timer)
			window.removeEventListener('message', heard)
			settle(value)
		}
		const timer = setTimeout(() => {
			mine.remove()
			if (frame === mine) frame = null
			end(reject, new Error(say('the_time_2')))
		}, PATIENCE)
		const heard = ({ source: from, data }) => {
			if (from !== mine.contentWindow) return
			if (data?.ready) send()
			else if (data?.id === id)
				typeof data.svg === 'string' && data.svg.length < MAX_PICTURE
					? end(resolve, data.svg)
					: end(reject, new Error(String(data.error ?? 'It is too large.').slice(0, 300)))
		}
		window.addEventListener('message', heard)
		send()
	})
}

export function diagramView(source) {
	const { el } = codeBlock(source, 'mermaid')
	const pre = el.querySelector('pre')
	const toggle = template('source').el
	toggle.onclick = () => show(pre.hidden)
	el.querySelector('figcaption').append(toggle)
	let picture
	const show = text => {
		pre.hidden = !text
		picture.hidden = text
		toggle.ariaPressed = text
	}
	whenNear(el, async () => {
		const dark = matchMedia('(prefers-color-scheme: dark)').matches
		try {
			if (source.length > MAX_LENGTH) throw new Error('It is too long.')
			const svg = await draw(source, dark)
			const image = h('img', {
				src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`,
				alt: `Diagram: ${source.trim().slice(0, 200)}`
			})
			picture = h(
				'button.drawing',
				{
					label: say('diagram'),
					'data-scheme': dark ? 'dark' : 'light',
					onclick: () => picture.classList.toggle('full')
				},
				image
			)
			await image.decode()
			pre.before(picture)
			toggle.hidden = false
			show(false)
		} catch (error) {
			pre.before(h('p.hint.undrawn', { text: `This diagram could not be drawn: ${error.message}` }))
		}
	})
	return el
}
