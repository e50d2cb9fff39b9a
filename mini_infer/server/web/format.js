// Numbers for people.

/** Three digits that matter. @param {number} value */
export function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (value >= 1e4) return `${Math.round(value / 1e3)}k`;
  if (value >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** A duration. @param {number} seconds */
export function duration(seconds) {
  if (seconds === 0) return "0";
  if (seconds >= 100) return `${Math.round(seconds)} s`;
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  const ms = seconds * 1e3;
  return `${ms >= 100 ? Math.round(ms) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

/** A share of one. @param {number} value */
export function percent(value) {
  const hundredth = value * 100;
  if (hundredth > 0 && hundredth < 0.05) return "< 0.1 %";
  return `${hundredth > 0 && hundredth < 10 ? hundredth.toFixed(1) : Math.round(hundredth)} %`;
}

/** A number with its noun. @param {number} count @param {string} noun */
export function many(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}
