// Hides incomplete Markdown at the end of a streamed text
const MAX_HIDDEN = 1500 // characters; a longer open formula is shown as text

function withoutOpenFormula(block) {
	const bare = block.replace(/(`+)[^`]+\1(?!`)/g, found => ' '.repeat(found.length))
	const found = [
		/\\\((?:(?!\\\))[\s\S])*$/,
		/\\\[(?:(?!\\\])[\s\S])*$/,
		/(?<![\w$\\])\$(?=[^\s$\d`])[^$]*\\[^$]*$/,
		/[$\\]+$/
	].map(pattern => pattern.exec(bare)?.index ?? Infinity)
	const dollars = bare.split('$$')
	if (dollars.length % 2 === 0) found.push(bare.length - dollars.at(-1).length - 2)
	const at = Math.min(...found)
	return block.length - at < MAX_HIDDEN ? block.slice(0, at) : block
}

export function heal(text) {
	const start = text.lastIndexOf('\n\n') + 1 // marks end with their block
	const line = text.slice(text.lastIndexOf('\n') + 1)
	let block = text.slice(start)
	const lines = block.replace(/^\n/, '').split('\n')
	if (lines.length < 3 && /^\s*\|/.test(lines[0])) return text.slice(0, -lines.join('\n').length)
	if (/^\s*([-=*_+]+|\d+[.)]?|#{1,6}|>(\s*\[!?\w*\]?)?|`{1,3}|~{1,3})\s*$/.test(line))
		return text.slice(0, -line.length)
	if (/(^|\n) {0,3}(```|~~~)/.test(block)) return text

	block = withoutOpenFormula(block).replace(/(?<!`)<(\/?[a-z]{0,10}|!-{0,2})$|\[\^[^\]\s]*$/i, '')
	const blank = found => ' '.repeat(found.length)
	const [run, ticks = '', rest] = /(`+)([^`]*)$/.exec(block.replace(/(`+)[^`]+\1(?!`)/g, blank)) ?? []
	if (run && !rest) block = block.slice(0, -run.length)
	if (!run) {
		const link = /(^|\s)!?\[([^\]\n]*)(\]\([^)\n]*|\])?$/.exec(block)
		if (link) block = block.slice(0, link.index) + link[1] + (/^([ x]?|\^.*)$/i.test(link[2]) ? '' : link[2])
		block = block.replace(/[*_~]+$/, '')
	}
	let bare = block.replace(/`[^`]*`?|\\./g, blank)
	let marks = ''
	for (const mark of ['~~', '**', '__', '*', '_']) {
		const at = bare.lastIndexOf(mark)
		const opens = at >= 0 && /^$|[\s("'[*_]/.test(bare.charAt(at - 1)) && /[^\s*_~]/.test(bare.charAt(at + mark.length))
		if (opens) marks = mark + marks
		bare = bare.replaceAll(mark, blank)
	}
	const closing = (rest ? ticks : '') + marks
	return text.slice(0, start) + (closing ? block.trimEnd() + closing : block)
}
