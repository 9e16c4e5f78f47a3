// The chooser of a project: recent ones, and the folders in the workspace roots
import { nameOf } from '../list.js'
import { spell } from '../marks.js'
import { showDialog } from './dialogs.js'
import { filled, h, icon, refill, say, setText, styles, template } from './dom.js'
import { ago, plural } from './format.js'

/** @param {Props} app @returns {Promise<{project: string | null, worktree: boolean} | null>} */
export async function chooseFolder(app, { project, worktree, recent }) {
	await styles('panels')
	const { el, path, list, note, inWorktree, box, cancel, none, use } = template('folders')
	box.checked = worktree
	cancel.onclick = () => el.close('')
	none.onclick = () => el.close('none')
	use.onclick = () => el.close('yes')
	let current = project
	let roots = []
	let repositories = new Set()

	function row({ path: one, repository }, facts, open) {
		const { el: button, sign } = filled('folder-row', { name: nameOf(one), facts })
		sign.replaceWith(icon(repository ? 'columns' : 'folder'))
		Object.assign(button, { onclick: open, title: spell(one) })
		return button
	}

	function select(one) {
		current = one
		use.disabled = !one
		inWorktree.hidden = !repositories.has(one)
		const root = roots.find(base => one === base || one?.startsWith(`${base}/`))
		const parts = root && one !== root ? one.slice(root.length + 1).split('/') : []
		const steps = root
			? [[nameOf(root), root], ...parts.map((name, at) => [name, [root, ...parts.slice(0, at + 1)].join('/')])]
			: []
		refill(
			path,
			h('button.quiet', { onclick: () => show(null) }, 'Projects'),
			...steps.flatMap(([name, to]) => [icon('chevron'), h('button.quiet', { onclick: () => show(to), text: name })])
		)
	}

	async function show(one) {
		list.ariaBusy = 'true'
		try {
			const found = await app.api.call('GET', `/folders${one ? `?path=${encodeURIComponent(one)}` : ''}`)
			;({ roots } = found)
			list.hidden = use.hidden = !roots.length
			for (const { path: at, repository } of found.folders) if (repository) repositories.add(at)
			select(one)
			refill(
				list,
				...(one
					? []
					: recent.map(each =>
							row({ path: each.path, repository: false }, `${plural(each.count, 'session')} · ${ago(each.last)}`, () =>
								show(each.path)
							)
						)),
				...found.folders
					.filter(each => one || !recent.some(known => known.path === each.path))
					.map(each => row(each, each.repository ? 'git' : '', () => show(each.path)))
			)
			setText(
				note,
				!roots.length
					? say('this_server')
					: found.truncated
						? say('there_are')
						: list.childElementCount
							? ''
							: say('no')
			)
		} catch (error) {
			setText(note, error.message)
			select(one && roots.length ? null : one)
		}
		list.ariaBusy = 'false'
		// The list has replaced the button with the focus
		if (document.activeElement === document.body || document.activeElement === el)
			(list.querySelector('button') ?? path.lastElementChild).focus()
	}

	repositories = new Set(worktree && project ? [project] : [])
	await show(project)
	const answer = await showDialog(el)
	if (answer === 'none') return { project: null, worktree: false }
	return answer ? { project: current, worktree: box.checked && repositories.has(current) } : null
}
