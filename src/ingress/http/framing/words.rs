//! The words of HTTP/1 heads: which bytes they are made of, and the few headers that decide a length.

/// The most bytes of a name or a value that decides a length, white space around the value included. No such name is
/// longer, and a longer value is an error.
pub const MAX_WORD: usize = 24;

pub(super) const CONTENT_LENGTH: &[u8] = b"content-length";
pub(super) const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";

/// What a header means for the length of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LengthHeader {
    ContentLength,
    TransferEncoding,
    /// Any other header: it means nothing.
    Other,
}

impl LengthHeader {
    /// The header of this name.
    pub(super) fn named(name: &ShortWord) -> Self {
        match name {
            name if name.is(CONTENT_LENGTH) => Self::ContentLength,
            name if name.is(TRANSFER_ENCODING) => Self::TransferEncoding,
            _ => Self::Other,
        }
    }
}

/// A word that is collected byte by byte. Of a longer one than [`MAX_WORD`], only the length is kept.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ShortWord {
    bytes: [u8; MAX_WORD],
    len: usize,
}

impl ShortWord {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..) {
            let fits = bytes.len().min(room.len());
            room[..fits].copy_from_slice(&bytes[..fits]);
        }
        self.len = self.len.saturating_add(bytes.len());
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// The word. For one that is too long, a word without a meaning.
    pub(super) fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(b"?")
    }

    /// Whether it is `word`, in upper or lower case.
    pub(super) fn is(&self, word: &[u8]) -> bool {
        self.get().eq_ignore_ascii_case(word)
    }
}

/// A set of bytes.
pub(super) struct ByteClass([bool; 256]);

/// Bytes of a method or of a header's name (RFC 9110, 5.6.2).
pub(super) static TOKEN: ByteClass = {
    let (mut class, marks) = ([false; 256], b"!#$%&'*+-.^_`|~");
    let mut byte: u8 = 0;
    while byte < 128 {
        class[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut i = 0;
    while i < marks.len() {
        class[marks[i] as usize] = true;
        i += 1;
    }
    ByteClass(class)
};
/// Bytes that no target may have: browsers encode them in paths and in queries (the query percent-encode set of the URL
/// Standard), and `#` would begin a fragment, which is not sent.
pub(super) const NOT_IN_TARGET: &[u8] = b"\"#<>";
/// Bytes of a target's query: visible ASCII without those. RFC 3986 does not allow all of them, but browsers send them
/// as they are: `[ ] { } | \ ^` and the backtick.
pub(super) static QUERY: ByteClass = ByteClass::between(0x21, 0x7E).without(NOT_IN_TARGET);
/// Bytes of a target in front of its query. Browsers turn the backslash into a slash, as some web servers do, and encode
/// the backtick.
pub(super) static PATH: ByteClass = QUERY.without(NOT_IN_PATH);
/// Bytes that a target may have in its query only.
pub(super) const NOT_IN_PATH: &[u8] = b"?\\`";
/// Bytes of a header's value: all but control characters, and the tab.
pub(super) static VALUE: ByteClass = {
    let ByteClass(mut class) = ByteClass::between(0x20, 0xFF);
    class[0x7F] = false;
    class[b'\t' as usize] = true;
    ByteClass(class)
};

impl ByteClass {
    const fn between(first: u8, last: u8) -> Self {
        let mut class = [false; 256];
        let mut byte = first as usize;
        while byte <= last as usize {
            class[byte] = true;
            byte += 1;
        }
        Self(class)
    }

    const fn without(&self, bytes: &[u8]) -> Self {
        let (mut class, mut i) = (self.0, 0);
        while i < bytes.len() {
            class[bytes[i] as usize] = false;
            i += 1;
        }
        Self(class)
    }

    pub(super) fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte)]
    }

    /// How many bytes at the beginning of `bytes` are in the set.
    pub(super) fn run(&self, bytes: &[u8]) -> usize {
        // In groups of eight, which the compiler looks up without a branch for each byte.
        let (eights, _) = bytes.as_chunks::<8>();
        let all = |eight: &&[u8; 8]| eight.iter().fold(true, |all, byte| all & self.has(*byte));
        let whole = 8 * eights.iter().take_while(all).count();
        whole + bytes[whole..].iter().take_while(|byte| self.has(**byte)).count()
    }
}

/// The length of the header line at the beginning of `bytes`, when it is complete, has the strict form, and its name
/// has another length than the names that matter. 0 for every other line: it is read byte by byte.
///
/// `Host: x\r\nA` gives 9, and `Host: x`, `Host : x\r\n` and `Content-Length: 1\r\n` give 0.
pub(super) fn unimportant_line(bytes: &[u8]) -> usize {
    let name = TOKEN.run(bytes);
    let Some((b':', rest)) = bytes[name..].split_first() else { return 0 };
    if [0, CONTENT_LENGTH.len(), TRANSFER_ENCODING.len()].contains(&name) {
        return 0;
    }
    let value = VALUE.run(rest);
    if rest[value..].starts_with(b"\r\n") { name + 1 + value + 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_lines_without_a_meaning_are_skipped() {
        for (bytes, length) in [
            (&b"Host: x\r\nA"[..], 9),
            (b"X:\r\n", 4),
            (b"Host: x", 0),
            (b"Host: x\n", 0),
            (b"Host : x\r\n", 0),
            (b": x\r\n", 0),
            (b"Host: \0\r\n", 0),
            (b"Content-Length: 1\r\n", 0),
            (b"TRANSFER-ENCODING: x\r\n", 0),
        ] {
            assert_eq!(unimportant_line(bytes), length, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_word_that_is_too_long_has_no_meaning() {
        let mut word = ShortWord::default();
        word.push(b"Content-");
        word.push(b"LENGTH");
        assert_eq!(LengthHeader::named(&word), LengthHeader::ContentLength);
        word.push(&[b'x'; 10]);
        assert_eq!(word.get().len(), MAX_WORD);
        word.push(b"x");
        assert_eq!(word.get(), b"?");
        word.clear();
        assert!(word.is(b""));
    }
}
