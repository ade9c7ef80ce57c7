/** Numbers and times as the viewer's own language and zone have them. */

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const score = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1, signDisplay: "exceptZero" });
const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
const clocks = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const hours = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZoneName: "short" });
const nearHours = new Intl.DateTimeFormat(undefined, { weekday: "short", hour: "2-digit", minute: "2-digit" });
const days = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const longDays = new Intl.DateTimeFormat(undefined, { dateStyle: "full" });

/** The viewer's zone by its name, such as Europe/Berlin. */
export const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;

/** @param {number} n */
export const count = (n) => whole.format(n);
/** @param {number} n */
export const compact = (n) => (Math.abs(n) < 10_000 ? new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 }).format(n) : short.format(n));
/** @param {number} part @param {number} all */
export const share = (part, all) => (all ? percent.format(part / all) : "–");
/** @param {number} n a mean score, -10 to 10 */
export const points = (n) => score.format(n);

/**
 * Amounts of one column, with as many decimals as its largest one needs, and none that is something shown as nothing.
 * @param {number[]} amounts @param {string} currency of ISO 4217 @returns {(amount: number) => string}
 */
export function monies(amounts, currency) {
  const most = Math.max(0, ...amounts.map(Math.abs));
  const digits = most >= 1 || most === 0 ? 2 : Math.min(8, 2 - Math.floor(Math.log10(most)));
  const least = 10 ** -digits;
  const format = (/** @type {number} */ amount) => money(amount, currency, digits);
  return (amount) => (amount > 0 && amount < least / 2 ? `< ${format(least)}` : format(amount));
}

/** Small amounts keep two figures that say something. @param {number} amount @param {string} currency of ISO 4217 @param {number} [fixed] decimals */
export function money(amount, currency, fixed) {
  const digits = fixed !== undefined ? fixed : amount !== 0 && Math.abs(amount) < 1 ? Math.min(8, 1 - Math.floor(Math.log10(Math.abs(amount)))) : 2;
  try {
    return new Intl.NumberFormat(undefined, {
      style: "currency", currency, minimumFractionDigits: fixed ?? Math.min(2, digits), maximumFractionDigits: fixed ?? Math.max(2, digits),
    }).format(amount);
  } catch { // no code of three letters
    return `${new Intl.NumberFormat(undefined, { maximumFractionDigits: digits }).format(amount)} ${currency}`;
  }
}

/** @param {number} s a duration */
export function seconds(s) {
  if (!Number.isFinite(s)) return "–";
  if (s < 0.0005) return "0 ms";
  if (s < 1) return `${new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 }).format(s * 1000)} ms`;
  if (s < 120) return `${new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 }).format(s)} s`;
  if (s < 7200) return `${whole.format(s / 60)} min`;
  return s < 172_800 ? `${whole.format(s / 3600)} h` : `${whole.format(s / 86_400)} days`;
}

/** @param {string | number | Date | null | undefined} at */
export const moment = (at) => (at ? moments.format(new Date(at)) : "–");
/** @param {string | number | Date} at */
export const date = (at) => dates.format(new Date(at));
/** With the zone. @param {string | number | Date} at */
export const exactly = (at) => exact.format(new Date(at));
/** @param {string | number | Date} at */
export const clock = (at) => clocks.format(new Date(at));
/** An hour of a day that is near. @param {string | number | Date} at */
export const hour = (at) => nearHours.format(new Date(at));
/** An hour, with its day and zone. @param {string | number | Date} at */
export const exactHour = (at) => hours.format(new Date(at));
/** @param {string | number | Date} at */
export const day = (at) => days.format(new Date(at));
/** @param {string | number | Date} at */
export const longDay = (at) => longDays.format(new Date(at));
/** How long ago. @param {string | null} at */
export const since = (at) => (at ? seconds(Math.max(0, Math.floor((Date.now() - Date.parse(at)) / 1000))) : "–");
