// docs.js: shows /openapi.json. Swagger UI is no module: it is a global of the page.

const dark = matchMedia('(prefers-color-scheme: dark)');
const follow = () => document.documentElement.classList.toggle('dark-mode', dark.matches);
dark.addEventListener('change', follow);
follow();

globalThis.SwaggerUIBundle({
	url: 'openapi.json',
	dom_id: '#docs',
	deepLinking: true,
	defaultModelsExpandDepth: 0,
	displayRequestDuration: true,
	// Nothing of the document, and no token, goes to anyone else.
	validatorUrl: null,
	persistAuthorization: false
});
