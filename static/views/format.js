/** format.js: numbers and times in words, short ones. */

export function duration(ms) {
  if (ms == null) return '';
  if (ms < 950) return `${Math.max(1, Math.round(ms / 10) * 10)} ms`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** How long ago, from unix seconds: 'now', '5 min', '3 h', '2 d', or a date. */
export function ago(seconds, now = Date.now() / 1000) {
  if (seconds == null) return '';
  const past = Math.max(0, now - seconds);
  if (past < 60) return 'now';
  if (past < 3600) return `${Math.floor(past / 60)} min`;
  if (past < 86400) return `${Math.floor(past / 3600)} h`;
  if (past < 7 * 86400) return `${Math.floor(past / 86400)} d`;
  return new Date(seconds * 1000).toLocaleDateString(undefined, { day: 'numeric', month: 'short' });
}

export function compact(number) {
  if (number == null) return '';
  if (number < 1000) return String(number);
  if (number < 100_000) return `${(number / 1000).toFixed(1).replace('.0', '')}k`;
  if (number < 1_000_000) return `${Math.round(number / 1000)}k`;
  return `${(number / 1_000_000).toFixed(1).replace('.0', '')}M`;
}

export function bytes(number) {
  if (number < 1024) return `${number} B`;
  if (number < 1024 * 1024) return `${Math.round(number / 1024)} KB`;
  return `${(number / 1024 / 1024).toFixed(1)} MB`;
}

export function money(cost) {
  if (!cost || typeof cost.amount !== 'number') return '';
  try {
    return new Intl.NumberFormat(undefined, {
      style: 'currency',
      currency: cost.currency || 'USD',
      currencyDisplay: 'narrowSymbol',
      maximumFractionDigits: cost.amount < 1 ? 3 : 2,
    }).format(cost.amount);
  } catch {
    return `${cost.amount.toFixed(2)} ${cost.currency}`; // a currency code that Intl refuses
  }
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** The end of a path is what tells files apart. */
export function shortPath(path) {
  const parts = String(path ?? '').split('/');
  return parts.length > 3 ? parts.slice(-2).join('/') : String(path ?? '');
}

export function pretty(value) {
  return typeof value === 'string' ? value : JSON.stringify(value, null, 2);
}
