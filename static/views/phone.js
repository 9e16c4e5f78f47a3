// A link to copy or to scan
import { encode } from 'uqr'
import { copyText, h, icon, styles } from './dom.js'

const SVG = 'http://www.w3.org/2000/svg'

function qrCode(text) {
	const { data, size } = encode(text, { border: 2 })
	const svg = document.createElementNS(SVG, 'svg')
	svg.setAttribute('viewBox', `0 0 ${size} ${size}`)
	svg.setAttribute('class', 'qr')
	svg.setAttribute('role', 'img')
	svg.setAttribute('aria-label', 'QR code of the link')
	const path = document.createElementNS(SVG, 'path')
	path.setAttribute('d', data.flatMap((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : ''))).join(''))
	svg.append(path)
	return svg
}

/** @param {{title: string, text: string, link: string, more?: any[]}} options */
export async function showLink({ title, text, link, more = [] }) {
	await styles('panels')
	const field = h('input', { value: link, label: 'Link', readonly: '', onfocus: () => field.select() })
	const words = h('span', { text: 'Copy' })
	const copy = h(
		'button.primary',
		{
			onclick: async () => {
				words.textContent = (await copyText(field.value)) ? 'Copied' : 'Not copied'
			}
		},
		icon('copy'),
		words
	)
	const code = h('div.qr-box', {}, qrCode(link))
	const close = h('button.icon-button', { label: 'Close', onclick: () => el.close() }, icon('close'))
	const el = h(
		'dialog.dialog.link-dialog',
		{ label: title },
		h('header.panel-head', {}, h('h2.grow', { text: title }), close),
		code,
		h('p.hint', { text }),
		more,
		h('div.copy-row', {}, field, copy)
	)
	el.addEventListener('click', event => event.target === el && el.close())
	el.onclose = () => el.remove()
	document.body.append(el)
	el.showModal()
	return changed => {
		field.value = changed
		code.replaceChildren(qrCode(changed))
	}
}

// The code contains the sign-in only on request: everybody who scans it could use it
export async function showPhone(id, token) {
	const base = new URL(`#session=${id}`, document.baseURI).href
	const box = h('input', { type: 'checkbox' })
	let change = _ => {}
	box.onchange = () => change(box.checked ? `${base}&token=${token}` : base)
	change = await showLink({
		title: 'Continue on a phone',
		text: 'Scan it with the camera. The phone must be able to reach this server.',
		link: base,
		more: [
			h(
				'label.check',
				{},
				box,
				h('span', {}, 'Sign the phone in, too', h('small', { text: 'Whoever scans or copies it then acts as you.' }))
			)
		]
	})
}
