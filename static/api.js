/** api.js: the REST calls of the contract. A failure is an ApiError with the server's code. */

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.code = code;
  }
}

export class Api {
  #token;
  #onUnauthorized;

  constructor(token, onUnauthorized = () => {}) {
    this.#token = token;
    this.#onUnauthorized = onUnauthorized;
  }

  get token() {
    return this.#token;
  }

  sessions(includeClosed = false) {
    return this.#call('GET', `/sessions${includeClosed ? '?include_closed=true' : ''}`).then((body) => body.sessions);
  }
  session(id) {
    return this.#call('GET', `/sessions/${id}`);
  }
  create(options) {
    return this.#call('POST', '/sessions', options);
  }
  update(id, meta) {
    return this.#call('PATCH', `/sessions/${id}`, { meta });
  }
  close(id) {
    return this.#call('DELETE', `/sessions/${id}`);
  }
  agents() {
    return this.#call('GET', '/agents').then((body) => body.agents);
  }

  /** XHR, because fetch cannot tell how far an upload has got. */
  upload(file, onProgress) {
    const xhr = new XMLHttpRequest();
    const done = new Promise((resolve, reject) => {
      xhr.open('POST', '/files');
      xhr.setRequestHeader('Authorization', `Bearer ${this.#token}`);
      xhr.responseType = 'json';
      xhr.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
      xhr.onload = () => (xhr.status < 300 ? resolve(xhr.response) : reject(failure(xhr.status, xhr.response)));
      xhr.onerror = () => reject(new ApiError(0, 'network', 'The upload did not get through.'));
      xhr.onabort = () => reject(new ApiError(0, 'aborted', 'The upload was stopped.'));
      const form = new FormData();
      form.append('file', file, file.name);
      xhr.send(form);
    });
    return { done, abort: () => xhr.abort() };
  }

  async #call(method, path, body) {
    let response;
    try {
      response = await fetch(path, {
        method,
        headers: {
          Authorization: `Bearer ${this.#token}`,
          ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: 'no-store',
        credentials: 'omit',
      });
    } catch {
      throw new ApiError(0, 'network', 'The server cannot be reached.');
    }
    const answer = await response.json().catch(() => null);
    if (response.ok) return answer;
    const error = failure(response.status, answer);
    if (error.status === 401) this.#onUnauthorized(error);
    throw error;
  }
}

function failure(status, body) {
  return new ApiError(status, body?.code ?? 'internal', body?.error ?? `The server answered ${status}.`);
}
