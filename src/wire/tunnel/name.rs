//! The name of a tunnel session, and how it is written in a URL.

use std::{fmt, str};

/// The name of a tunnel session: 128 random bits, so that nobody can guess one. A URL has it as
/// [`SessionName::DIGITS`] hexadecimal digits.
///
/// In a cluster, the first 16 bits are the tag of the node that has the session, and 112 bits are random. So the name has
/// the same length everywhere, and the node is known before the session is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionName([u8; SessionName::BYTES]);

/// The tag of a node of a cluster: the first [`NodeTag::BYTES`] bytes of the names of its sessions. It is made of the
/// node's name with the cluster's secret, so it shows nothing of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeTag(pub [u8; NodeTag::BYTES]);

impl NodeTag {
    /// Bytes of a tag.
    pub const BYTES: usize = 2;
}

/// As the name of a session begins in a URL: four hexadecimal digits.
impl fmt::Display for NodeTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The part of a tunnel URL at the place of the session's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlName {
    /// Nothing: the first request of a session has no name yet.
    Empty,
    /// A name in its legal form. Whether a session has it, only the list of sessions knows.
    Session(SessionName),
    /// Another text. No session can have it as its name.
    NotAName {
        /// Bytes of the text.
        length: u8,
    },
}

impl SessionName {
    const BYTES: usize = 16;
    /// Characters of a name in a URL.
    pub const DIGITS: usize = 2 * Self::BYTES;

    /// A new name.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// A new name on this node of a cluster; `None`: there is no cluster.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random_on(node: Option<NodeTag>) -> Result<Self, getrandom::Error> {
        let mut name = Self::random()?;
        if let Some(NodeTag(tag)) = node {
            name.0[..NodeTag::BYTES].copy_from_slice(&tag);
        }
        Ok(name)
    }

    /// The tag of the node that has the session, if this is the name of a session of a cluster.
    pub fn node(&self) -> NodeTag {
        let [first, second, ..] = self.0;
        NodeTag([first, second])
    }

    /// Reads a name as a URL has it, in small or capital letters. `None`: another length, or not hexadecimal.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; Self::DIGITS] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; Self::BYTES];
        for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks().0) {
            *byte = value(*high)? << 4 | value(*low)?;
        }
        Some(Self(bytes))
    }

    /// Writes the name as a URL has it, in small letters.
    pub fn digits(&self) -> [u8; Self::DIGITS] {
        let mut digits = [0; Self::DIGITS];
        for (pair, byte) in digits.as_chunks_mut().0.iter_mut().zip(self.0) {
            *pair = [digit(byte >> 4), digit(byte & 0xF)];
        }
        digits
    }

    /// The bits of the name.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

/// Whoever has a name can ask for the session, so no log shows it.
impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionName(..)")
    }
}

impl UrlName {
    /// The longest text, in bytes, that may stand at the place of the name.
    pub const LONGEST: u8 = 64;

    /// Reads the part of a URL at the place of the name. `None`: it is longer than [`Self::LONGEST`].
    pub fn parse(text: &str) -> Option<Self> {
        let length = u8::try_from(text.len()).ok().filter(|length| *length <= Self::LONGEST)?;
        Some(match SessionName::parse(text) {
            Some(name) => Self::Session(name),
            None if text.is_empty() => Self::Empty,
            None => Self::NotAName { length },
        })
    }
}

/// The value of a hexadecimal digit.
fn value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| value.try_into().ok())
}

/// The hexadecimal digit of a value below 16.
fn digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &SessionName) -> String {
        String::from_utf8(name.digits().to_vec()).expect("digits")
    }

    #[test]
    fn names_come_back_and_nothing_else_is_one() {
        let name = SessionName::random().expect("random");
        let text = text(&name);
        assert_eq!((text.len(), format!("{name:?}").as_str()), (32, "SessionName(..)"));
        assert_eq!(SessionName::parse(&text), Some(name));
        assert_eq!(SessionName::parse(&text.to_uppercase()), Some(name));
        for wrong in ["", "é", &text[1..], &text.replace(|c: char| c.is_ascii_hexdigit(), "x"), &format!("{text}0")] {
            assert_eq!(SessionName::parse(wrong), None);
        }
        assert_eq!(SessionName::parse(&format!("é{}", &text[2..])), None, "32 bytes that are not digits");
    }

    #[test]
    fn every_byte_is_written_as_two_digits() {
        let name = SessionName::parse("00090a0f10909fa0a9aff0f9faff7f80").expect("a name");
        assert_eq!(name.as_bytes(), &[0, 9, 10, 15, 16, 144, 159, 160, 169, 175, 240, 249, 250, 255, 127, 128]);
        assert_eq!(text(&name), "00090a0f10909fa0a9aff0f9faff7f80");
        assert_ne!(SessionName::random().expect("random"), SessionName::random().expect("random"));
    }

    #[test]
    fn a_name_begins_with_the_tag_of_its_node_and_is_as_long_as_any_other() {
        let tag = NodeTag([0xA1, 0x0B]);
        let [one, other] = [SessionName::random_on(Some(tag)), SessionName::random_on(Some(tag))];
        let (one, other) = (one.expect("random"), other.expect("random"));
        assert!(text(&one).starts_with(&tag.to_string()) && tag.to_string() == "a10b");
        assert_eq!((one.node(), text(&one).len()), (tag, SessionName::DIGITS));
        assert_ne!(one, other);
    }

    #[test]
    fn a_url_has_a_name_or_none_or_something_else() {
        let name = SessionName::random().expect("random");
        assert_eq!(UrlName::parse(""), Some(UrlName::Empty));
        assert_eq!(UrlName::parse(&text(&name)), Some(UrlName::Session(name)));
        for length in [1, 31, 32, 33, 64] {
            assert_eq!(UrlName::parse(&"g".repeat(usize::from(length))), Some(UrlName::NotAName { length }));
        }
        for length in [65, 256, 5000] {
            assert_eq!(UrlName::parse(&"a".repeat(length)), None);
        }
    }

    #[test]
    fn no_name_is_in_a_log() {
        let name = SessionName::random().expect("random");
        assert!(!format!("{:?}", UrlName::Session(name)).contains(&text(&name)));
    }
}
