// A link to copy or to scan
import { encode } from 'uqr'
import { popUp } from './dialogs.js'
import { copyText, h, refill, say, styles, template } from './dom.js'

function qrCode(text) {
	const { data, size } = encode(text, { border: 2 })
	const { el } = template('qr')
	el.setAttribute('viewBox', `0 0 ${size} ${size}`)
	el.firstChild.setAttribute(
		'd',
		data.flatMap((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : ''))).join('')
	)
	return el
}

/** @param {{title: string, text: string, link: string, more?: any[]}} options */
export async function showLink({ title, text, link, more = [] }) {
	await styles('panels')
	const { el, close, heading, code, hint, field, copy, words, copying } = template('link')
	el.ariaLabel = heading.textContent = title
	hint.textContent = text
	field.value = link
	field.onfocus = () => field.select()
	copy.onclick = async () => {
		words.textContent = (await copyText(field.value)) ? 'Copied' : 'Not copied'
	}
	code.append(qrCode(link))
	copying.before(...more)
	popUp(el, close)
	return changed => {
		field.value = changed
		refill(code, qrCode(changed))
	}
}

// The code contains the sign-in only on request: everybody who scans it could use it
export async function showPhone(id, token) {
	const base = new URL(`#session=${id}`, document.baseURI).href
	const box = h('input', { type: 'checkbox' })
	let change = _ => {}
	box.onchange = () => change(box.checked ? `${base}&token=${token}` : base)
	change = await showLink({
		title: say('continue'),
		text: say('scan_it'),
		link: base,
		more: [h('label.check', {}, box, h('span', {}, say('sign_the'), h('small', { text: say('whoever_scans') })))]
	})
}
