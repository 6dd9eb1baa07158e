// Shows local pictures instead of those of other hosts, and asks no other host for any.
//
// The logos of block types and work pools become tiles with the initials of what they stand for;
// any other picture becomes a neutral icon, whose title says where the picture would have come from.
// Loaded before the UI's own scripts, which set `src` by property or by attribute.
(() => {
  "use strict";

  // Where Prefect and its integrations keep their logos.
  const LOGOS = /^https:\/\/(raw\.githubusercontent\.com\/PrefectHQ\/|images\.ctfassets\.net\/|cdn\.sanity\.io\/)/;
  const NOISE = new Set(["bit", "icon", "logo", "microsoft", "tm"]);
  const COLOURS = ["#1d4ed8", "#0f766e", "#7e22ce", "#b45309", "#be123c", "#4d7c0f", "#0369a1", "#475569"];

  const picture = (content) =>
    "data:image/svg+xml," +
    encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="96" height="96">${content}</svg>`);

  const tile = (initials, colour) =>
    picture(
      `<rect width="64" height="64" rx="4" fill="${colour}"/>` +
        '<text x="32" y="33" fill="#fff" text-anchor="middle" dominant-baseline="central" ' +
        `font-family="system-ui, sans-serif" font-weight="600" font-size="${initials.length > 2 ? 22 : 28}">${initials}</text>`,
    );

  // A cube for a block type, a frame with hills for a picture.
  const outline = (path) =>
    picture(
      `<path d="${path}" fill="none" stroke="#64748b" stroke-width="3" stroke-linecap="round" stroke-linejoin="round"/>`,
    );
  const BLOCK = outline("M32 10 51 21V43L32 54 13 43V21ZM13 21 32 32 51 21M32 32V54");
  const PICTURE = outline("M10 14H54V50H10ZM10 44 24 30 34 40 42 33 54 44M42 23A2 2 0 1 1 41.9 23");

  const logo = (address) => {
    const file = address.pathname.split("/").pop().replace(/\.\w+$/, "");
    const words = file.toLowerCase().split(/[^a-z0-9]+/).filter((word) => /^[a-z]+$/.test(word) && !NOISE.has(word));
    if (words.length === 0) {
      return BLOCK; // a checksum
    }
    const initials = words.length > 1 ? words[0][0] + words[1][0] : words[0].slice(0, words[0].length > 3 ? 2 : 3);
    const sum = [...words.join("")].reduce((total, letter) => total * 31 + letter.charCodeAt(0), 0);
    return tile(initials.toUpperCase(), COLOURS[sum % COLOURS.length]);
  };

  const local = (image, value) => {
    let address;
    try {
      address = new URL(value, document.baseURI);
    } catch {
      return value;
    }
    if (!/^https?:$/.test(address.protocol) || address.origin === location.origin) {
      return value;
    }
    if (LOGOS.test(address.href)) {
      return logo(address);
    }
    image.title ||= `Not loaded from ${address.host}`;
    return PICTURE;
  };

  const { prototype } = HTMLImageElement;
  const src = Object.getOwnPropertyDescriptor(prototype, "src");
  Object.defineProperty(prototype, "src", {
    ...src,
    set(value) {
      src.set.call(this, local(this, value));
    },
  });
  prototype.setAttribute = function (name, value) {
    Element.prototype.setAttribute.call(this, name, String(name).toLowerCase() === "src" ? local(this, value) : value);
  };
})();
