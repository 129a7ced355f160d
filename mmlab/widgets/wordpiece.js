// BERT's WordPiece, as mmlab.datasets.tokenizer has it: clean, split into words, cut each word into
// the longest pieces that the vocabulary holds. What is a mark or a punctuation sign the browser
// decides by today's Unicode, the package by that of 2015: rare scripts added since can differ.

const LONGEST_WORD = 100; // characters; what is longer is unknown, as in BERT
const CHINESE = [
  [0x4e00, 0x9fff], [0x3400, 0x4dbf], [0x20000, 0x2a6df], [0x2a700, 0x2b73f], [0x2b740, 0x2b81f],
  [0x2b920, 0x2ceaf], [0xf900, 0xfaff], [0x2f800, 0x2fa1f],
];
const isChinese = (character) => {
  const code = character.codePointAt(0);
  return CHINESE.some(([first, last]) => first <= code && code <= last);
};
const SPACE = /[\p{White_Space}]/u;
const REMOVED = /[\0\ufffd\p{Cc}\p{Cf}\p{Co}]/u; // control, format, private
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}]/u;

// Without control characters and, where letters are lowered, without accents; Chinese apart.
function cleaned(text, lowercase) {
  const kept = [...text].map((c) => {
    if (SPACE.test(c) && !/[\v\f\x85]/.test(c)) return " ";
    if (REMOVED.test(c)) return "";
    return isChinese(c) ? ` ${c} ` : c;
  }).join("");
  if (!lowercase) return kept;
  const bare = kept.normalize("NFD").replace(/\p{Mn}/gu, "");
  return [...bare].map((c) => c.toLowerCase()).join(""); // one by one: no rule for a final sigma
}

// Words, and punctuation marks each on its own.
function splitWords(text) {
  const words = [];
  let open = false;
  for (const character of text) {
    const alone = PUNCTUATION.test(character);
    const space = SPACE.test(character);
    if (alone || (!space && !open)) words.push(character);
    else if (!space) words[words.length - 1] += character;
    open = !alone && !space;
  }
  return words;
}

// A vocabulary in the order of its numbers, with the names of the special tokens.
function createTokenizer({ vocab, special, unknown, first, last, lowercase, max_length }) {
  const numbers = new Map(vocab.map((token, number) => [token, number]));
  const escaped = special.map((token) => token.replace(/[[\]|\\{}()^$+*?.]/g, "\\$&"));
  const parts = new RegExp(`(${escaped.join("|")})`);

  // The longest piece first; a word with a character that no piece has is unknown as a whole.
  function pieces(word) {
    const letters = [...word];
    if (letters.length > LONGEST_WORD) return [unknown];
    const found = [];
    for (let start = 0, end; start < letters.length; start = end) {
      const name = () => (start ? "##" : "") + letters.slice(start, end).join("");
      end = letters.length;
      while (end > start && !numbers.has(name())) end--;
      if (end === start) return [unknown];
      found.push(name());
    }
    return found;
  }

  // Every word with its pieces; half a surrogate pair becomes "?", as in Python.
  function words(text) {
    return text.replace(/\p{Surrogate}/gu, "?").split(parts).flatMap((part) =>
      special.includes(part) ? [{ word: part, pieces: [part] }]
        : splitWords(cleaned(part, lowercase)).map((word) => ({ word, pieces: pieces(word) })));
  }

  // The tokens that the model reads, their numbers, and how many did not fit.
  return (text) => {
    const found = words(text);
    const all = found.flatMap((word) => word.pieces);
    const tokens = [first, ...all.slice(0, max_length - 2), last];
    const ids = tokens.map((token) => numbers.get(token));
    return { tokens, ids, words: found, unknown, dropped: all.length + 2 - tokens.length };
  };
}
