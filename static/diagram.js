/** In a sandboxed frame of its own: takes the source of a diagram, answers with its SVG. See views/diagram.js. */
const { mermaid } = globalThis;
// What the source of a diagram must not set: limits, and styles, which could name other servers.
const secure = ['secure', 'securityLevel', 'startOnLoad', 'maxTextSize', 'maxEdges', 'suppressErrorRendering', 'htmlLabels', 'themeCSS', 'themeVariables', 'fontFamily', 'altFontFamily', 'dompurifyConfig'];

addEventListener('message', async ({ source: page, data }) => {
	if (page !== parent || typeof data?.source !== 'string') return;
	const { id, source, dark } = data;
	try {
		mermaid.initialize({ secure, startOnLoad: false, securityLevel: 'strict', htmlLabels: false, flowchart: { htmlLabels: false }, theme: dark ? 'dark' : 'default', fontFamily: 'system-ui, sans-serif', maxTextSize: 20_000, maxEdges: 300, suppressErrorRendering: true });
		const { svg } = await mermaid.render(`diagram-${id}`, source);
		document.body.innerHTML = svg;
		const drawing = document.body.querySelector('svg');
		const { width, height } = drawing.viewBox.baseVal;
		if (width && height) {
			drawing.setAttribute('width', Math.ceil(width));
			drawing.setAttribute('height', Math.ceil(height));
		}
		parent.postMessage({ id, svg: new XMLSerializer().serializeToString(drawing) }, '*');
	} catch (error) {
		parent.postMessage({ id, error: String(error?.message ?? error) }, '*');
	}
	document.body.replaceChildren();
});
parent.postMessage({ ready: true }, '*');
