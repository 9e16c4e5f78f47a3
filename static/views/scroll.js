/**
 * scroll.js: stays at the end if the reader is there, and leaves the reader
 * alone otherwise (the idea is Campfire's scroll manager).
 */
const NEAR = 56; // px from the end that still count as being there

export class ScrollKeeper {
  constructor(scroller, content, onChange = () => {}) {
    this.scroller = scroller;
    this.content = content;
    this.onChange = onChange;
    this.following = true;
    this.top = 0;
    scroller.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    // The wish to look back is known before the scrolling begins.
    scroller.addEventListener('wheel', (event) => event.deltaY < 0 && this.#set(false), { passive: true });
    new ResizeObserver(() => this.keep()).observe(content);
    new ResizeObserver(() => this.keep()).observe(scroller);
  }

  /** After the content changed: one write, no reading back. */
  keep() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  toEnd(smooth = false) {
    this.#set(true);
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: smooth ? 'smooth' : 'instant' });
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const left = scrollHeight - scrollTop - clientHeight;
    const up = scrollTop < this.top - 1;
    this.top = scrollTop;
    if (left < 4) this.#set(true);
    else if (up && left > NEAR) this.#set(false);
    else if (!up && left <= NEAR) this.#set(true);
  }

  #set(following) {
    // Scrolling up where there is nothing to scroll means nothing.
    if (!following && this.scroller.scrollHeight <= this.scroller.clientHeight) return;
    if (this.following === following) return;
    this.following = following;
    this.onChange(following);
  }
}
