// Codes in hex and their bits: bit i is bit i % 8 of byte i / 8.

export function bitsOf(code, bits) {
  return Uint8Array.from({ length: bits }, (_, i) => (byteOf(code, i >> 3) >> (i & 7)) & 1);
}

function byteOf(code, place) {
  return parseInt(code.slice(2 * place, 2 * place + 2), 16);
}

export function codeOf(bitsArray) {
  const bytes = new Uint8Array(Math.ceil(bitsArray.length / 8));
  bitsArray.forEach((bit, i) => (bytes[i >> 3] |= bit << (i & 7)));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function differing(one, other, bits) {
  const [a, b] = [bitsOf(one, bits), bitsOf(other, bits)];
  return Array.from({ length: bits }, (_, i) => i).filter((i) => a[i] !== b[i]);
}

export function distance(one, other, bits) {
  return differing(one, other, bits).length;
}

export function flip(code, bit, bits) {
  const all = bitsOf(code, bits);
  all[bit] ^= 1;
  return codeOf(all);
}

// The code with the smallest sum of distances to all of these: the majority of each bit. Bits that are tied are taken
// from the codes in turn, so that the code of two is halfway between them, and not one of them.
export function combine(codes, bits) {
  if (codes.length === 1) return codes[0];
  const all = codes.map((code) => bitsOf(code, bits));
  let ties = 0;
  const majority = Uint8Array.from({ length: bits }, (_, i) => {
    const ones = all.reduce((sum, one) => sum + one[i], 0);
    if (2 * ones !== all.length) return Number(2 * ones > all.length);
    return all[ties++ % all.length][i];
  });
  return codeOf(majority);
}

// How the answers of a query leave out what is nearer to a code that was ruled out than to the query.
export function isRuledOut(code, query, ruledOut, bits) {
  const own = distance(code, query, bits);
  return ruledOut.some((other) => distance(code, other, bits) < own);
}
