// Unified diffs as rows, and what changed. No DOM

/** @returns {{path: string, rows: Props[], binary: boolean}[]} */
export function parsePatch(text) {
	const files = []
	let file = null
	let left = 0
	let right = 0
	let [i, j] = [0, 0]
	for (const one of text.split('\n')) {
		if (one.startsWith('diff --git ')) files.push((file = { path: one.slice(11), rows: [], binary: false }))
		else if (!file) continue
		else if (left > 0 || right > 0 || one.startsWith('\\')) {
			if (one.startsWith('\\')) {
				if (file.rows.length) file.rows.at(-1).unended = true
				continue
			}
			const sign = one[0] ?? ' '
			if (sign !== '+') left -= 1
			if (sign !== '-') right -= 1
			const line = sign === '-' ? i : j
			if (sign !== '+') i += 1
			if (sign !== '-') j += 1
			file.rows.push({ sign, text: one.slice(1).replace(/\r$/, ''), line, ...(sign === ' ' && { old: i - 1 }) })
		} else if (one.startsWith('@@')) {
			const found = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)$/.exec(one)
			if (!found) continue
			;[i, j] = [Number(found[1]), Number(found[3])]
			;[left, right] = [Number(found[2] ?? 1), Number(found[4] ?? 1)]
			if (file.rows.length || i > 1 || j > 1) file.rows.push({ note: found[5] || '…' })
		} else if (/^(Binary files|GIT binary patch)/.test(one)) file.binary = true
	}
	return files
}

/** @param {{additions: number | null, deletions: number | null}[]} files */
export function totals(files) {
	let [added, removed] = [0, 0]
	for (const { additions, deletions } of files) {
		added += additions ?? 0
		removed += deletions ?? 0
	}
	return { count: files.length, added, removed }
}

// Of a path in a session's folder, for an address
export const encodePath = path => path.split('/').map(encodeURIComponent).join('/')
