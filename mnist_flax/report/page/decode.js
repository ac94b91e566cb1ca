// Decodes an array that Python put into the page: little-endian bytes in base64.

function decode({ dtype, base64 }) {
  const { buffer } = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  if (dtype === "float16") return Float32Array.from(new Uint16Array(buffer), readHalf);
  return dtype === "float32" ? new Float32Array(buffer) : new Uint8Array(buffer);
}

// Converts the bits of a float16 to a number: a sign, 5 bits of exponent and 10 of fraction.
function readHalf(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  return bits >> 15 ? -size : size;
}
