// Numbers as people read them.

const LETTERS = [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e4, 'k']];
const RAISED = {'-': '⁻', 0: '⁰', 1: '¹', 2: '²', 3: '³', 4: '⁴', 5: '⁵', 6: '⁶', 7: '⁷', 8: '⁸', 9: '⁹'};

/** Three digits: 2.9B, 340, 0.034; – where it is unknown. */
export function short(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  for (const [limit, letter] of LETTERS) {
    if (size >= 0.9995 * limit && size < 1e15) return digits(value / (letter === 'k' ? 1e3 : limit)) + letter;
  }
  return size >= 1e15 || (size > 0 && size < 1e-3) ? power(value) : digits(value);
}

/** 2.03·10¹⁹ */
export function power(value) {
  if (value === null || value === undefined) return '–';
  const [front, exponent] = value.toExponential(2).split('e');
  const raised = [...String(Number(exponent))].map((sign) => RAISED[sign]).join('');
  return `${Number(front)}·10${raised}`;
}

/** Four decimals, of a loss. */
export function loss(value) {
  return value === null || value === undefined ? '–' : value.toFixed(4);
}

/** A value and its interval, each written by `write`. */
export function between(value, ends, write = short) {
  const known = ends && ends[0] !== null && ends[1] !== null;
  return known ? `${write(value)} [${write(ends[0])}, ${write(ends[1])}]` : write(value);
}

/** 1 run, 2 runs */
export function counted(number, one, many = `${one}s`) {
  return `${number.toLocaleString('en')} ${number === 1 ? one : many}`;
}

const NUMBER = /(\d+(?:\.\d+)?(?:e[-+]?\d+)?)/;

/** Which of two names comes first: by their numbers, 10 after 9 and 0.01 after 0.003. */
export function natural(a, b) {
  const [one, other] = [a, b].map((text) => text.split(NUMBER));
  const from = one.findIndex((part, i) => part !== other[i]);
  if (from < 0) return one.length - other.length;
  return (from % 2 ? one[from] - other[from] : 0) || one[from].localeCompare(other[from] ?? '', 'en');
}

/** A moment, in the reader's own time. */
export function moment(seconds) {
  if (seconds === null || seconds === undefined) return '';
  return new Date(1000 * seconds).toLocaleString([], {dateStyle: 'medium', timeStyle: 'short'});
}

/** A quantity of an advice: name, value, unit, and its interval. */
export function quantity({name, value, unit, low, high}) {
  const percent = unit === '%';
  const write = (number) => {
    if (percent) return `${digits(100 * number)}%`;
    return unit.startsWith('nats') ? number.toFixed(3) : short(number);
  };
  return [name, value === null ? '–' : between(value, [low, high], write) + (percent || !unit ? '' : ` ${unit}`)];
}

function digits(value) {
  return Number(value.toPrecision(3)).toLocaleString('en', {maximumSignificantDigits: 3});
}
