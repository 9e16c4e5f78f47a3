// Lets acpx's command line find no `.acpxrc.json` in a session's folder. Node loads this first.
//
// acpx runs outside of the sandbox, and an agent writes in that folder: a link in place of the file
// would show the beginning of any file of the server in acpx's error, and a pipe would stop acpx.

import fs from 'node:fs/promises';
import path from 'node:path';

const read = fs.readFile;

fs.readFile = (file, ...options) =>
	typeof file === 'string' && path.basename(file) === '.acpxrc.json'
		? Promise.reject(Object.assign(new Error('the configuration of projects is off'), { code: 'ENOENT' }))
		: read(file, ...options);
