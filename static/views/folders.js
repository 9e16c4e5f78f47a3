// The chooser of a project: recent ones, and the folders in the workspace roots
import { nameOf } from '../list.js'
import { h, icon, setText, styles } from './dom.js'
import { ago, plural } from './format.js'

/** @param {Props} app @returns {Promise<{project: string | null, worktree: boolean} | null>} */
export async function chooseFolder(app, { project, worktree, recent }) {
	await styles('panels')
	const note = h('p.hint', { role: 'status' })
	const path = h('nav.crumbs', { label: 'Folder' })
	const list = h('div.folder-list')
	const box = h('input', { type: 'checkbox', checked: worktree })
	const inWorktree = h(
		'label.check.worktree',
		{},
		box,
		h(
			'span',
			{},
			'In its own worktree',
			h('small', {
				text: 'The agent gets a copy of the repository and a branch of its own; your files stay as they are.'
			})
		)
	)
	const use = h('button.primary', { onclick: () => el.close('yes') }, 'Use this folder')
	const none = h('button.secondary', { onclick: () => el.close('none') }, 'A new folder')
	const cancel = h('button.quiet', { onclick: () => el.close('') }, 'Cancel')
	const el = h(
		'dialog.dialog.wide-dialog',
		{ label: 'Choose a project' },
		h('h2', { text: 'Where should the agent work?' }),
		path,
		list,
		note,
		inWorktree,
		h('div.chips.dialog-actions', {}, cancel, none, use)
	)
	let current = project
	let roots = []
	let repositories = new Set()

	const row = ({ path: one, repository }, detail, open) =>
		h(
			'button.folder-row',
			{ onclick: open, 'aria-current': one === current ? 'true' : null, title: one },
			icon(repository ? 'columns' : 'folder'),
			h('span.ellipsis.grow', { text: nameOf(one), dir: 'auto' }),
			h('small', { text: detail })
		)

	function select(one) {
		current = one
		use.disabled = !one
		inWorktree.hidden = !repositories.has(one)
		const root = roots.find(base => one === base || one?.startsWith(`${base}/`))
		const parts = root && one !== root ? one.slice(root.length + 1).split('/') : []
		const steps = root
			? [[nameOf(root), root], ...parts.map((name, at) => [name, [root, ...parts.slice(0, at + 1)].join('/')])]
			: []
		path.replaceChildren(
			h('button.quiet', { onclick: () => show(null) }, 'Projects'),
			...steps.flatMap(([name, to]) => [icon('chevron'), h('button.quiet', { onclick: () => show(to), text: name })])
		)
	}

	async function show(one) {
		list.ariaBusy = 'true'
		try {
			const found = await app.api.call('GET', `/folders${one ? `?path=${encodeURIComponent(one)}` : ''}`)
			;({ roots } = found)
			for (const { path: at, repository } of found.folders) if (repository) repositories.add(at)
			select(one)
			list.replaceChildren(
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
					? 'This server gives each session a new folder. To work in your projects, set CLAWDFORGE_WORKSPACE_ROOTS to the folders that may be used, and start it again.'
					: found.truncated
						? 'There are more folders than are shown.'
						: list.childElementCount
							? ''
							: 'No folders in here.'
			)
		} catch (error) {
			setText(note, error.message)
			select(one && roots.length ? null : one)
		}
		list.ariaBusy = 'false'
	}

	el.addEventListener('click', event => event.target === el && el.close(''))
	document.body.append(el)
	repositories = new Set(worktree && project ? [project] : [])
	await show(project)
	el.showModal()
	return new Promise(resolve => {
		el.onclose = () => {
			el.remove()
			const chosen = {
				yes: { project: current, worktree: box.checked && repositories.has(current) },
				none: { project: null, worktree: false }
			}
			resolve(chosen[el.returnValue] ?? null)
		}
	})
}
