/** icons.js: one stroke on one grid of 24, drawn as DOM: no markup strings, no requests. */

const PATHS = {
	menu: 'M4 7h16M4 12h16M4 17h10',
	plus: 'M12 5v14M5 12h14',
	search: 'M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14ZM20 20l-4-4',
	close: 'M6 6l12 12M18 6 6 18',
	check: 'M5 12.5 10 17 19 7',
	chevron: 'M9 6l6 6-6 6',
	down: 'M12 5v14M6 13l6 6 6-6',
	up: 'M12 19V5M6 11l6-6 6 6',
	stop: 'M7 7h10v10H7z',
	clip: 'M20 11.5 12.3 19a5 5 0 0 1-7-7l8-8a3.3 3.3 0 0 1 4.7 4.7l-8 7.8a1.6 1.6 0 0 1-2.3-2.2l7.3-7.2',
	copy: 'M9 9h10v10H9zM5 15V5h10',
	more: 'M6 12h.01M12 12h.01M18 12h.01',
	pencil: 'M4 20l1-4L16 5l3 3L8 19l-4 1ZM14 7l3 3',
	file: 'M7 3h7l4 4v14H7zM14 3v4h4',
	terminal: 'M4 5h16v14H4zM8 10l2.5 2L8 14M13 15h3',
	globe: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18ZM3 12h18M12 3c3 3 3 15 0 18M12 3c-3 3-3 15 0 18',
	spark: 'M12 4l1.8 5.2L19 11l-5.2 1.8L12 18l-1.8-5.2L5 11l5.2-1.8ZM19 17v3M17.5 18.5h3',
	trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13',
	move: 'M4 12h15M13 6l6 6-6 6',
	swap: 'M4 8h14M14 4l4 4-4 4M20 16H6M10 12l-4 4 4 4',
	wrench: 'M20 7a5 5 0 0 1-6.5 6L7 19.5A1.8 1.8 0 0 1 4.5 17L11 10.5A5 5 0 0 1 17 4l-3 3 .5 2.5L17 10Z',
	shield: 'M12 3l7 3v5c0 5-3 8-7 10-4-2-7-5-7-10V6ZM12 9v3M12 15h.01',
	alert: 'M12 4 21 19.5H3ZM12 10v4M12 17h.01',
	info: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18ZM12 11v5M12 8h.01',
	clock: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18ZM12 7v5l3 2',
	bell: 'M6 16V11a6 6 0 0 1 12 0v5l1.5 2h-15ZM10 21h4',
	frames: 'M8 7l-5 5 5 5M16 7l5 5-5 5M13.5 5l-3 14',
	list: 'M9 6h11M9 12h11M9 18h11M4 6h.01M4 12h.01M4 18h.01',
	refresh: 'M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5',
	gear: 'M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4',
	leave: 'M14 4h5v16h-5M4 12h11M11 8l4 4-4 4',
	/* The mark: three strokes of a claw, struck as a spark. */
	mark: 'M4.5 19.5C5 13 7 8 10 4M10 20.5c.3-5.5 1.6-10 4.3-14M15.5 20.5c.2-3.8 1.1-7 3-10.2',
};

const KINDS = { read: 'file', edit: 'pencil', delete: 'trash', move: 'move', search: 'search', execute: 'terminal', think: 'spark', fetch: 'globe', switch_mode: 'swap' };

export const MARK = PATHS.mark;

export function icon(name) {
	const make = (tag, attributes) => {
		const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
		for (const key in attributes) node.setAttribute(key, attributes[key]);
		return node;
	};
	const svg = make('svg', { viewBox: '0 0 24 24', class: name === 'mark' ? 'mark' : `icon icon-${name}`, 'aria-hidden': 'true' });
	svg.append(make('path', { d: PATHS[name] }));
	return svg;
}

/** The icon of an ACP tool kind. */
export const kindIcon = (kind) => icon(KINDS[kind] ?? 'wrench');
