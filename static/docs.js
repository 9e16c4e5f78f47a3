// Renders /openapi.json. Swagger UI is a global, not a module.

const dark = matchMedia('(prefers-color-scheme: dark)')
const follow = () => document.documentElement.classList.toggle('dark-mode', dark.matches)
dark.addEventListener('change', follow)
follow()

globalThis.SwaggerUIBundle({
	url: 'openapi.json',
	dom_id: '#docs',
	deepLinking: true,
	defaultModelsExpandDepth: 0,
	displayRequestDuration: true,
	// The document and the token are sent to no other server.
	validatorUrl: null,
	persistAuthorization: false
})
