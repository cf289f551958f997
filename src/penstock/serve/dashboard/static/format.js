// Numbers as people read them: three digits and a unit.

/** 1234567 -> "1.23M"; 0.034 -> "0.034" */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [scale, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= scale) return trim(value / scale) + suffix;
  }
  return trim(value);
}

/** 2048 -> "2,048"; from 100,000 on as `short` */
export function count(value) {
  return value < 1e5 ? Math.round(value).toLocaleString("en") : short(value);
}

/** Seconds -> "850 µs", "12 ms", "1.5 s", "3 min" */
export function seconds(value) {
  if (value === 0) return "0 s";
  if (value < 1e-3) return `${trim(value * 1e6)} µs`;
  if (value < 1) return `${trim(value * 1e3)} ms`;
  return value < 120 ? `${trim(value)} s` : `${trim(value / 60)} min`;
}

/** 0.125 -> "12.5 %" */
export function percent(value) {
  return `${trim(value * 100)} %`;
}

function trim(value) {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.max(Math.abs(value), 1e-3))));
  return String(Number(value.toFixed(Math.min(digits, 3))));
}
