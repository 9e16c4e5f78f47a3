export function duration(ms) {
	const seconds = Math.round(ms / 1000)
	if (ms < 950) return `${Math.round(ms / 10) * 10} ms`
	if (seconds < 60) return `${seconds} s`
	if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
	return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`
}

export function ago(at) {
	const past = Date.now() / 1000 - at
	if (past < 60) return 'now'
	if (past < 3600) return `${Math.floor(past / 60)} min`
	if (past < 86400) return `${Math.floor(past / 3600)} h`
	if (past < 604800) return `${Math.floor(past / 86400)} d`
	return new Date(at * 1000).toLocaleDateString(undefined, { day: 'numeric', month: 'short' })
}

export const compact = number =>
	new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 }).format(number).toLowerCase()

export const bytes = number =>
	number < 1048576 ? `${Math.ceil(number / 1024)} KB` : `${(number / 1048576).toFixed(1)} MB`

export function money(cost) {
	const { amount, currency } = cost ?? {}
	if (!(amount > 0 && amount < 1e15)) return ''
	const number = amount.toFixed(amount < 0.1 ? 4 : 2)
	return currency === 'USD' ? `$${number}` : `${number} ${currency}`
}

export const plural = (count, one) => `${count} ${one}${count === 1 ? '' : 's'}`

export const languageOf = path => /\.(\w+)$/.exec(path)?.[1] ?? ''

export const shortPath = path =>
	String(path ?? '')
		.split('/')
		.slice(-2)
		.join('/')

// The known facts, on one line
export const dotted = facts => facts.filter(Boolean).join(' · ')
