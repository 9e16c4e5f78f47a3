const NEAR = 56
const LOOK_FOR = 24 // px below the top edge

export class ScrollKeeper {
	content
	onchange
	scroller
	constructor(scroller, content, onchange) {
		Object.assign(this, { scroller, content, onchange, following: true, top: 0, width: scroller.clientWidth })
		scroller.addEventListener('scroll', () => this.#scrolled(), { passive: true })
		for (const name of ['wheel', 'touchmove', 'pointerdown'])
			scroller.addEventListener(name, () => (this.leftEnd = false), { passive: true })
		scroller.addEventListener('wheel', event => event.deltaY < 0 && this.#follow(false), { passive: true })
		const resized = new ResizeObserver(() => this.#resized())
		resized.observe(content)
		resized.observe(scroller)
	}

	visit(el) {
		const { following } = this
		el.scrollIntoView({ block: 'nearest' })
		this.leftEnd ||= following
	}

	// A place was chosen: new output does not move it
	leave() {
		this.#follow(false)
	}

	resume() {
		if (this.leftEnd) this.toEnd()
	}

	keep() {
		if (!this.following) return
		this.scroller.scrollTop = this.scroller.scrollHeight
		this.top = this.scroller.scrollTop
	}

	toEnd() {
		this.leftEnd = false
		this.#follow(true)
		this.keep()
	}

	#resized() {
		const { scroller, anchor, width } = this
		this.width = scroller.clientWidth
		if (this.following) this.keep()
		else if (width !== this.width && anchor?.el.isConnected)
			scroller.scrollTop += anchor.el.getBoundingClientRect().top - anchor.top
	}

	#remember() {
		const { left, top, width } = this.scroller.getBoundingClientRect()
		const el = document.elementFromPoint(left + width / 2, top + LOOK_FOR)
		this.anchor = el && this.content.contains(el) ? { el, top: el.getBoundingClientRect().top } : null
	}

	#scrolled() {
		const { scrollTop, scrollHeight, clientHeight } = this.scroller
		const left = scrollHeight - scrollTop - clientHeight
		const up = scrollTop < this.top - 1
		this.top = scrollTop
		if (left < 2 || (!up && left <= NEAR)) this.#follow(true)
		else if (up) this.#follow(false)
		clearTimeout(this.later)
		if (!this.following && this.width === this.scroller.clientWidth)
			this.later = setTimeout(() => this.#remember(), 100)
	}

	#follow(following) {
		const { scrollHeight, clientHeight } = this.scroller
		if (!following && scrollHeight <= clientHeight) return
		if (this.following === following) return
		this.following = following
		this.onchange(following)
	}
}
