// Paths of a session's folder that fit what was typed after an @. No DOM
const KEPT = 30_000 // ms
const LEVELS = 12
const SHOWN = 50
const ASIDE = /(^|\/)(\.git|node_modules|__pycache__|\.venv)(\/|$)/ // come last

export class Paths {
	#list
	#kept = new Map()
	/** @param {(folder: string, levels: number) => Promise<Props>} list asks for the entries of a folder */
	constructor(list) {
		this.#list = list
	}

	/** @returns {Promise<{path: string, type: string, size: number}[]>} the best first */
	async find(typed) {
		const all = await this.#entries('')
		const folder = typed.slice(0, Math.max(0, typed.lastIndexOf('/')))
		const { entries } = all.truncated && folder ? await this.#entries(folder) : all
		return matches(entries, typed.toLowerCase())
	}

	forget() {
		this.#kept.clear()
	}

	#entries(folder) {
		if (!this.#kept.has(folder)) {
			const asked = this.#list(folder, LEVELS)
			this.#kept.set(folder, asked)
			asked.catch(() => this.#kept.delete(folder))
			setTimeout(() => this.#kept.delete(folder), KEPT).unref?.()
		}
		return this.#kept.get(folder)
	}
}

export function matches(entries, typed) {
	const children = !typed || typed.endsWith('/')
	const found = []
	for (const entry of entries) {
		const path = entry.path.toLowerCase()
		const name = path.slice(path.lastIndexOf('/') + 1)
		const at = path.indexOf(typed)
		if (at < 0 || (children && (at > 0 || path === typed || path.slice(typed.length).includes('/')))) continue
		const aside = ASIDE.test(path) && !ASIDE.test(typed) ? 10 : 0
		const rank = name.startsWith(typed) ? 0 : at === 0 ? 1 : name.includes(typed) ? 2 : 3
		found.push({ entry, rank: aside + rank, depth: path.split('/').length })
	}
	found.sort((a, b) => a.rank - b.rank || a.depth - b.depth || (a.entry.path < b.entry.path ? -1 : 1))
	return found.slice(0, SHOWN).map(({ entry }) => entry)
}

/** @returns {Props} a resource link of ACP */
export const linkTo = (cwd, { path, size }) => ({
	type: 'resource_link',
	uri: `file://${`${cwd}/${path}`.split('/').map(encodeURIComponent).join('/')}`,
	name: path,
	size
})
