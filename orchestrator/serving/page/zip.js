"use strict";
// One ZIP file of several files, stored without compression: photographs are compressed already.
// The parts are Blobs that the browser may keep on disk; nothing is copied, so a large file costs no memory.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

async function crc32(blob) {
  let crc = ~0;
  const reader = blob.stream().getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    for (const byte of read.value) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

// A header is a list of [bytes, value]; ZIP is little-endian.
function header(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [bytes, value] of fields) {
    if (bytes === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
    at += bytes;
  }
  return view.buffer;
}

// Return the Blob of a ZIP file. files: [{name, blob}], below 4 GB in all.
async function zip(files) {
  const now = new Date();
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  const parts = [], directory = [];
  let offset = 0, directorySize = 0;
  for (const { name, blob } of files) {
    const text = new TextEncoder().encode(name);
    const common = [  // version, flags (names are UTF-8), method (stored), time, date, checksum, sizes, lengths
      [2, 20], [2, 0x800], [2, 0], [2, time], [2, date], [4, await crc32(blob)], [4, blob.size], [4, blob.size],
      [2, text.length], [2, 0],
    ];
    const local = [header([[4, 0x04034b50], ...common]), text, blob];
    const central = [
      header([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), text,
    ];
    parts.push(...local);
    directory.push(...central);
    offset += 30 + text.length + blob.size;
    directorySize += 46 + text.length;
  }
  const end = header([
    [4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, directorySize], [4, offset], [2, 0],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
