/** Stays at the end if the reader is there, and leaves the reader alone otherwise. */
const NEAR = 56;

export class ScrollKeeper {
	constructor(scroller, content, onchange) {
		Object.assign(this, { scroller, onchange, following: true, top: 0 });
		scroller.addEventListener('scroll', () => this.#scrolled(), { passive: true });
		// The wish to look back is known before the scrolling begins.
		scroller.addEventListener('wheel', (event) => event.deltaY < 0 && this.#follow(false), { passive: true });
		const resized = new ResizeObserver(() => this.keep());
		resized.observe(content);
		resized.observe(scroller);
	}

	/** After the content changed. */
	keep() {
		if (!this.following) return;
		this.scroller.scrollTop = this.scroller.scrollHeight;
		this.top = this.scroller.scrollTop;
	}

	toEnd() {
		this.#follow(true);
		this.keep();
	}

	#scrolled() {
		const { scrollTop, scrollHeight, clientHeight } = this.scroller;
		const left = scrollHeight - scrollTop - clientHeight;
		const up = scrollTop < this.top - 1;
		this.top = scrollTop;
		if (left < 2 || (!up && left <= NEAR)) this.#follow(true);
		else if (up) this.#follow(false);
	}

	#follow(following) {
		const { scrollHeight, clientHeight } = this.scroller;
		if (!following && scrollHeight <= clientHeight) return;
		if (this.following === following) return;
		this.following = following;
		this.onchange(following);
	}
}
