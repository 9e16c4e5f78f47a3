// The theme that a person chose; without a choice, that of the system
export function applyTheme(name) {
	const chosen = name === 'light' || name === 'dark' ? name : null
	document.documentElement.style.colorScheme = chosen ?? ''
	for (const one of /** @type {NodeListOf<HTMLElement>} */ (
		document.querySelectorAll('[media*="prefers-color-scheme"], [data-scheme-of]')
	)) {
		const own = (one.dataset.schemeOf ??= /dark/.test(one.getAttribute('media')) ? 'dark' : 'light')
		// Paper is light
		const media = own === 'dark' ? 'screen' : chosen === own ? 'all' : 'print'
		one.setAttribute(
			'media',
			!chosen ? `(prefers-color-scheme: ${own})` : chosen === own || own === 'light' ? media : 'not all'
		)
	}
}
